"""What stages are loaded and run by: onnxruntime's C library or its Python module; each loader has one engine.

The C library needs neither numpy nor the Python module to be imported, which take longer than most models load, and
lets go of Python's lock while it works. It takes tensors of numbers. Whatever else there is goes through the Python
module, as does everything that is said in its own objects.
"""

from __future__ import annotations

import os

from splitload.base.errors import LibraryWarning, MissingPackageError, UsageError
from splitload.bundle.manifest import Manifest, TensorSpec
from splitload.runtime.capi.elements import BY_TYPE
from splitload.runtime.capi.engine import LibraryEngine
from splitload.runtime.capi.find import NoLibraryError, module_is_imported, named_path
from splitload.runtime.capi.library import library
from splitload.runtime.variants import check_floor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal, Protocol

    from splitload.runtime.boundaries import Boundaries
    from splitload.runtime.options import CallerOptions
    from splitload.runtime.session import StageIO

    EngineName = Literal["auto", "library", "python"]

    class Engine(Protocol):
        """Makes sessions on stage files, and runs them.

        Attributes:
            name: "library" or "python".
            version: Version of onnxruntime.
        """

        name: Literal["library", "python"]
        version: str

        def open(
            self, graph: str, *, prepack: bool, mapped: bool, optimize: bool, background: bool, share_memory: bool
        ) -> Any:
            """Return a session on a stage's graph file; see `session.open_session`."""

        def names(self, session: Any) -> tuple[set[str], set[str]]:
            """Return the names of the inputs and of the outputs of a session."""

        def value(self, spec: TensorSpec | None, given: Any) -> Any:
            """Return what is given for an input in the runtime's form."""

        def described(self, value: Any) -> tuple[str, Sequence[int]] | None:
            """Return the type and shape of a value; None where the runtime alone can tell whether it fits."""

        def boundaries(self, otherwise: set[str]) -> Boundaries:
            """Return memory for what the stages of a run hand on."""

        def run_stage(
            self,
            session: Any,
            stage: StageIO,
            needed: list[str],
            values: Mapping[str, Any],
            run_options: Any,
            *,
            keep: bool,
            boundaries: Boundaries,
        ) -> list[Any]:
            """Return the outputs that are needed, in the runtime's form; see `session.run_stage`."""

        def answer(self, value: Any) -> Any:
            """Return an output as `run` does."""

        def given_back(self, spec: TensorSpec, value: Any) -> Any:
            """Return what was given for an input that is an output too: a copy."""

        def canary(self, graph: str) -> list[float]:
            """Return what a canary gives, all outputs one after the other."""

        def reserve(self, session: Any, size_bytes: int) -> None:
            """Have the arena that a session shares with others hold a free piece of so many bytes."""

        def empty_arena(self) -> None:
            """Give back to the system what nobody uses of the arena of all stages."""


ENGINES = {"library": "C library", "python": "Python module"}
_told: set[str] = set()  # libraries of which it was said that they cannot be used


def check_engine(engine: object, arrays: object) -> None:
    """Raise `UsageError` unless both are known words."""
    if engine not in ("auto", *ENGINES):
        raise UsageError(f"engine takes 'auto', 'library' or 'python', not {engine!r}")
    if arrays not in ("numpy", "buffers"):
        raise UsageError(f"arrays takes 'numpy' or 'buffers', not {arrays!r}")


def chosen(
    wanted: EngineName, manifest: Manifest | None, caller: CallerOptions, named: str | os.PathLike[str] | None
) -> tuple[Engine, str]:
    """Return the engine for a bundle, and why it is that one.

    Where a C library is named that cannot be used, and another engine is, a `LibraryWarning` says so, once a process.

    Args:
        wanted: What the caller asks for.
        manifest: What the bundle says; None for any whose tensors are of numbers.
        caller: What the caller asks of sessions.
        named: The C library that is named, or None.

    Raises:
        UsageError: If the C library is asked for and cannot be used.
        MissingPackageError: If nothing can be used.
    """
    reason = "it is asked for" if wanted == "python" else _obstacle(wanted, manifest, caller, named)
    failed = ""
    if reason is None:
        try:
            opened = library(named)
            check_floor(opened.version)
            return LibraryEngine(opened), f"{opened.path} is onnxruntime {opened.version}"
        except (NoLibraryError, MissingPackageError) as error:
            reason, failed = str(error), named_path(named)
    if wanted == "library":
        raise UsageError(f"the engine 'library' cannot be used: {reason}")
    engine = python_engine(caller, reason)
    if failed and failed not in _told:
        import warnings

        _told.add(failed)
        warnings.warn(f"{reason}; onnxruntime's Python module is used instead", LibraryWarning, stacklevel=3)
    return engine, reason


def python_engine(caller: CallerOptions, reason: str = "") -> Engine:
    """Return the engine of the Python module.

    Args:
        caller: What the caller asks of sessions.
        reason: Why it is needed.

    Raises:
        MissingPackageError: If it is not installed, or too old.
    """
    try:
        from splitload.runtime.python_engine import PythonEngine
    except ImportError as error:
        from splitload.runtime.stock import missing_module

        raise missing_module(reason, error) from error
    made = PythonEngine(caller)
    check_floor(made.version)
    return made


def _obstacle(
    wanted: EngineName, manifest: Manifest | None, caller: CallerOptions, named: str | os.PathLike[str] | None
) -> str | None:
    """Return why a bundle cannot, or had better not, be loaded by the C library; None where it is."""
    if caller.needs_module:
        return "sess_options, provider_options and other providers are the Python module's"
    if manifest is not None and (others := sorted(_types(manifest) - BY_TYPE.keys())):
        return f"the C library is used for tensors of numbers, and the bundle has {', '.join(others)}"
    has_bfloat16 = manifest is not None and "tensor(bfloat16)" in _types(manifest)  # which the module cannot return
    if wanted == "auto" and named is None and not has_bfloat16 and module_is_imported():
        return "onnxruntime is imported already"
    return None


def _types(manifest: Manifest) -> set[str]:
    """Return the types of all that goes in, comes out or is handed on."""
    stages = (stage for variant in manifest.variants for stage in variant.stages)
    specs = [*manifest.inputs, *manifest.outputs, *(spec for stage in stages for spec in stage.outputs)]
    return {spec.type for spec in specs}
