"""Whether a bundle answers as a stock session on the original file does: tried once, before the bundle counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitload.base.errors import ModelError, SplitloadError
from splitload.bundle.manifest import Manifest, Variant
from splitload.graphs.here import HERE
from splitload.graphs.observe import one_line
from splitload.graphs.runtime import GraphRuntime, Refusal, StageRefusal
from splitload.runtime.answers import TOLERANCE, relative_error, unreturned
from splitload.runtime.inputs import cure, example_inputs, made_up
from splitload.runtime.variants import fitting


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the trial came to.

    Attributes:
        difference: By kind of variant, the largest difference of an output from the stock session's, relative to the
            largest magnitude of that output; inf where shapes, whole numbers or text differ. Variants for machines
            that are neither this one nor the device are not run.
        repeats: Whether the stock session gives the same twice; a model that draws random numbers does not.
        made_up: Names of the inputs that nobody gave.
        untried: Why nothing was run, or None.
    """

    difference: Mapping[str, float]
    repeats: bool = True
    made_up: tuple[str, ...] = ()
    untried: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether every variant that fits this machine was run, and is within the tolerance."""
        return self.untried is None and all(value <= TOLERANCE for value in self.difference.values())

    def note(self) -> str | None:
        """Return what a user has to know of it, as one line; None where all is well."""
        if self.untried is not None:
            return f"what it answers was not compared with a stock session: {self.untried}"
        if self.agrees or not self.repeats:
            return None if self.agrees else "its answers differ from run to run, in a stock session too"
        kind, most = max(self.difference.items(), key=lambda item: item[1])
        return (
            f"the {kind} graph answers otherwise than a stock session: by {most:.2g} of the largest value, "
            f"expected at most {TOLERANCE:g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; a difference that is NaN or infinite is null."""
        finite = {kind: value if value < float("inf") else None for kind, value in self.difference.items()}
        return {
            "difference": finite, "agrees": self.agrees, "repeats": self.repeats, "made_up": list(self.made_up),
            "untried": self.untried,
        }  # fmt: skip


def compare_with_stock(
    folder: Path, manifest: Manifest, original: Path, feeds: Mapping[str, Any], runtime: GraphRuntime = HERE
) -> Agreement:
    """Run the original file in a stock session and every variant of a bundle that fits this machine on the same inputs.

    Native variants that were made for another runtime are run there, beside a stock session there.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        original: The .onnx file that it was made of.
        feeds: Inputs; made up where they are missing.
        runtime: What its native graph was made for.

    Raises:
        ModelError: If the stock session runs and a variant does not.
        UsageError: If a feed names no input.
    """
    missing = made_up(manifest.inputs, feeds)
    if reason := unreturned(manifest.outputs):
        return Agreement({}, made_up=missing, untried=reason)
    names = [spec.name for spec in manifest.outputs]
    try:
        ready = example_inputs(manifest.inputs, feeds)
    except SplitloadError:
        if feeds:
            raise
        return Agreement({}, made_up=missing, untried="no inputs can be made up; give some with --input NAME=FILE.npy")
    difference: dict[str, float] = {}
    repeats = True
    for place in (HERE,) if runtime.is_here or not _made_for(runtime, manifest) else (HERE, runtime):
        try:
            expected = place.run(original, names, ready, how="stock")
        except Refusal as error:
            where = "" if place.is_here else f" on {place.words}"
            reason = f"the model does not run{where} on these inputs ({one_line(error)}){cure(missing)}"
            return Agreement({}, made_up=missing, untried=reason)
        found = _differences(place, folder, manifest, expected, ready)
        if any(value > TOLERANCE for value in found.values()):
            # random numbers begin alike in every session
            again = place.run(original, names, ready, how="stock", times=2)
            repeats &= max(map(relative_error, again, expected), default=0.0) <= TOLERANCE
        difference |= {kind: max(value, difference.get(kind, 0.0)) for kind, value in found.items()}
    return Agreement(difference, repeats, missing)


def _differences(
    place: GraphRuntime, folder: Path, manifest: Manifest, expected: Sequence[Any], feeds: Mapping[str, Any]
) -> dict[str, float]:
    """Return by kind the largest difference of variants that are run somewhere from what is expected there."""
    variants = fitting(folder, manifest, place.version) if place.is_here else _made_for(place, manifest)
    difference: dict[str, float] = {}
    for variant in variants:
        try:
            found = place.staged(folder, variant.stages, [spec.name for spec in manifest.outputs], feeds)
        except StageRefusal as error:
            raise ModelError(
                f"stage {error.number + 1} of {len(variant.stages)} ({variant.kind} graph) does not run on inputs that "
                f"a stock session runs on: {one_line(error)}"
            ) from error
        worst = max(map(relative_error, found, expected), default=0.0)
        difference[variant.kind] = max(worst, difference.get(variant.kind, 0.0))
    return difference


def _made_for(runtime: GraphRuntime, manifest: Manifest) -> list[Variant]:
    """Return the native variants that were made for a runtime."""
    return [each for each in manifest.variants if each.kind == "native" and each.fits(runtime.cpu, runtime.version)]
