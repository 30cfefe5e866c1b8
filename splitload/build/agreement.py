"""Whether a bundle answers as a stock session on the original file does: tried once, before the bundle counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from splitload.base.errors import ModelError, SplitloadError
from splitload.bundle.manifest import Manifest, TensorSpec, Variant
from splitload.graphs.observe import one_line
from splitload.runtime.answers import TOLERANCE, relative_error, unreturned
from splitload.runtime.inputs import cure, example_inputs, made_up
from splitload.runtime.session import open_session, run_stage, still_read, to_python
from splitload.runtime.stock import stock_session
from splitload.runtime.variants import fitting


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the trial came to.

    Attributes:
        difference: By kind of variant, the largest difference of an output from the stock session's, relative to the
            largest magnitude of that output; inf where shapes, whole numbers or text differ. Variants for other
            machines are not run.
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


class _Whole(NamedTuple):
    """The original model, as if it were a stage."""

    inputs: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]


def compare_with_stock(folder: Path, manifest: Manifest, original: Path, feeds: Mapping[str, Any]) -> Agreement:
    """Run the original file in a stock session and every variant of a bundle that fits this machine on the same inputs.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        original: The .onnx file that it was made of.
        feeds: Inputs; made up where they are missing.

    Raises:
        ModelError: If the stock session runs and a variant does not.
        UsageError: If a feed names no input.
    """
    import onnxruntime as ort

    missing = made_up(manifest.inputs, feeds)
    if reason := unreturned(manifest.outputs):
        return Agreement({}, made_up=missing, untried=reason)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    names = [spec.name for spec in manifest.outputs]
    whole = _Whole(tuple(spec.name for spec in manifest.inputs), manifest.outputs)

    def stock(run: int = 1) -> list[Any]:  # what that run gives; the session is gone when the variants are run
        session = stock_session(original, options)
        for _ in range(run):
            values = run_stage(ort, session, whole, names, ready, None)
        return [to_python(ort, value) for value in values]

    try:
        ready = example_inputs(manifest.inputs, feeds)
        expected = stock()
    except SplitloadError:
        if feeds:
            raise
        return Agreement({}, made_up=missing, untried="no inputs can be made up; give some with --input NAME=FILE.npy")
    except Exception as error:  # onnxruntime has no common root for its errors
        reason = f"the model does not run on these inputs ({one_line(error)}){cure(missing)}"
        return Agreement({}, made_up=missing, untried=reason)
    difference: dict[str, float] = {}
    for variant in fitting(folder, manifest, ort.__version__):
        found = _run_variant(ort, folder, variant, names, ready)
        worst = max(map(relative_error, found, expected), default=0.0)
        difference[variant.kind] = max(worst, difference.get(variant.kind, 0.0))
    repeats = True
    if any(value > TOLERANCE for value in difference.values()):
        # random numbers begin alike in every session
        repeats = max(map(relative_error, stock(run=2), expected), default=0.0) <= TOLERANCE
    return Agreement(difference, repeats, missing)


def _run_variant(ort: Any, folder: Path, variant: Variant, names: list[str], feeds: Mapping[str, Any]) -> list[Any]:
    """Return the outputs of a variant, stage after stage, with one session at a time in memory."""
    values = dict(feeds)
    for number, stage in enumerate(variant.stages):
        outputs = [spec.name for spec in stage.outputs]
        try:
            session = open_session(
                folder / stage.graph.name,
                prepack=stage.prepack,
                mapped=stage.mapped,
                optimize=stage.optimizes(stage.prepack),
            )
            values.update(zip(outputs, run_stage(ort, session, stage, outputs, values, None), strict=True))
            values = still_read(values, variant.stages[number + 1 :], names)
        except Exception as error:  # onnxruntime has no common root for its errors
            raise ModelError(
                f"stage {number + 1} of {len(variant.stages)} ({variant.kind} graph) does not run on inputs that a "
                f"stock session runs on: {one_line(error)}"
            ) from error
    return [to_python(ort, values[name]) for name in names]
