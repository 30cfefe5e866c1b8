"""Which variant of a bundle runs here: the first that fits this processor, and this version of the runtime.

A native variant fits where

- the processor is of the family it was made on, and holds as many channels together in onnxruntime's blocked layout:
  MLAS takes 16 on x86-64 with AVX-512F and 8 without, whatever else the processor can. For other families nothing tells
  the number before a session runs, and on a wrong one it may end the process; there a variant with blocked layouts fits
  the very processor and version that made it. A variant without blocked layouts needs the family only;
- the runtime is the version that made it, or passes its canary (canary.py). That also finds another file format.

Source: `MLAS_PLATFORM` in onnxruntime's `core/mlas/lib/platform.cpp`, the same from 1.26 to 1.32.
"""

from __future__ import annotations

import sys

from splitload.base.errors import BundleError, MissingPackageError, PortableWarning
from splitload.base.machine import cpu_architecture
from splitload.base.record import Record
from splitload.bundle.manifest import Manifest, Variant

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from splitload.base.regular import StrPath

    RunCanary = Callable[[str], Sequence[float]]

FLOOR = (1, 26)  # before, .ort files cannot be mapped, and transformers load slower than with a plain session
_X86_LEVELS = ("", "avx", "avx2", "avx512f")
_told: set[str] = set()  # bundles of which it was said that their portable graph runs


class Choice(Record):
    """The variant that runs here.

    Attributes:
        variant: The first that fits.
        why_portable: Why no native one runs, what would help included; None where one does, or the bundle has none.
    """

    variant: Variant
    why_portable: str | None


def choose(folder: StrPath, manifest: Manifest, runtime: str, run: RunCanary | None = None) -> Choice:
    """Return the variant that runs on this machine, trying the canaries of those that may.

    Args:
        folder: The bundle.
        manifest: What it says.
        runtime: Version of the onnxruntime that will load it.
        run: Runs a canary under it, see `Engine.canary`; None for the Python module.

    Raises:
        MissingPackageError: If the runtime is older than splitload needs.
    """
    check_floor(runtime)
    reasons, damaged = [], []
    for variant in manifest.variants:
        try:
            reason = _obstacle(folder, variant, runtime, run)
        except BundleError as error:
            damaged.append(str(error))
            continue
        if reason is None:
            break
        reasons.append(reason)
    if variant.kind == "native" or not (reasons or damaged):
        return Choice(variant, None)
    slower = f"'{folder}' runs its portable graph, which loads slower"
    told = list(damaged)
    if reasons:
        told.append(
            f"{'Besides, here' if damaged else 'here'} is {cpu_architecture()} with onnxruntime {runtime}, and "
            f"{'; '.join(reasons)}. 'splitload specialize {folder}' makes a native one for this machine"
        )
    if variant.residency is None and any(each.residency is not None for each in manifest.variants):
        told.append(
            "It keeps no ceiling on memory, as a native one does: all of the model is there unless residency says"
        )
    return Choice(variant, f"{slower}: {'. '.join(told)}")


def warn_once(folder: str, why_portable: str, stacklevel: int) -> None:
    """Issue a `PortableWarning`, once a bundle and process.

    Args:
        folder: The bundle.
        why_portable: See `Choice`.
        stacklevel: See `warnings.warn`; whose line it is of, with 1 for this function's.
    """
    if folder not in _told:
        import warnings

        _told.add(folder)
        warnings.warn(why_portable, PortableWarning, stacklevel)


def fitting(folder: StrPath, manifest: Manifest, runtime: str) -> list[Variant]:
    """Return every variant that may run on this machine, in order of preference; the canaries of others are tried.

    Args:
        folder: The bundle.
        manifest: What it says.
        runtime: Version of the onnxruntime that is imported.

    Raises:
        BundleError: If a canary is damaged.
    """
    fit = [variant for variant in manifest.variants if _obstacle(folder, variant, runtime) is None]
    remember()
    return fit


def remember() -> None:
    """Keep which canaries have passed, if any was tried; see `canary.remember`."""
    keep = getattr(sys.modules.get("splitload.runtime.canary"), "remember", None)  # it may be imported just now
    if keep is not None:
        keep()


def likely(manifest: Manifest) -> Variant:
    """Return the variant that will run here unless the runtime, which is not imported yet, is not fit for it."""
    return next(variant for variant in manifest.variants if _fits_processor(variant))


def check_floor(runtime: str) -> None:
    """Refuse a runtime that is too old.

    Raises:
        MissingPackageError: If it is.
    """
    parts = runtime.split(".")[:2]
    if all(part.isdecimal() for part in parts) and tuple(map(int, parts)) < FLOOR:
        least = ".".join(map(str, FLOOR))
        raise MissingPackageError(
            f"onnxruntime {runtime} is older than splitload needs, which is {least}: "
            f"'pip install --upgrade \"onnxruntime>={least}\"'"
        )


def layout_block(architecture: str) -> int | None:
    """Return how many channels a processor's blocked layout holds together, or None where that is not known.

    Args:
        architecture: As `machine.cpu_architecture` gives it.
    """
    family, _, level = architecture.partition("+")
    if family != "x86_64" or level not in _X86_LEVELS:
        return None
    return 16 if level == "avx512f" else 8


def _fits_processor(variant: Variant) -> bool:
    here = cpu_architecture()
    if variant.cpu in (None, here):
        return True
    if variant.needs is None or variant.needs.canary is None or variant.cpu.partition("+")[0] != here.partition("+")[0]:
        return False
    return variant.needs.block in (None, layout_block(here))


def _obstacle(folder: StrPath, variant: Variant, runtime: str, run: RunCanary | None = None) -> str | None:
    """Return why a variant does not run here, or None if it does.

    Raises:
        BundleError: If its canary is damaged.
    """
    made = f"a native one is for {variant.cpu} with onnxruntime {variant.runtime}"
    if variant.fits(cpu_architecture(), runtime):
        return None
    if not _fits_processor(variant):
        return made
    canary = variant.needs and variant.needs.canary
    blocked_elsewhere = variant.needs and variant.needs.block and layout_block(cpu_architecture()) is None
    if not canary or blocked_elsewhere:
        return f"{made} exactly"
    from splitload.runtime.canary import failure, in_module  # where a runtime is another one than the maker's

    died = failure(folder, canary, runtime, run or in_module)
    return None if died is None else f"{made}, whose canary dies ({died})"
