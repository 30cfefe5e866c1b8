"""What runs the stages of a job: the engine that a loader would choose here, and how it is given inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.bundle.manifest import TensorSpec
from splitload.measure.job import Input
from splitload.measure.stage_jobs import StageFile
from splitload.runtime.capi.elements import BY_TYPE
from splitload.runtime.engine import chosen, python_engine
from splitload.runtime.inputs import Arrays, example_inputs, load_feeds
from splitload.runtime.options import CallerOptions
from splitload.runtime.tiny import TINY_MODEL

if TYPE_CHECKING:
    from splitload.runtime.engine import Engine


def engine_for(inputs: Iterable[Input], stages: Iterable[StageFile]) -> Engine:
    """Return the engine that a loader would choose on this machine for a model.

    Args:
        inputs: The model's inputs.
        stages: Its stages.

    Raises:
        MissingPackageError: If there is none.
    """
    types = {each.type for each in inputs} | {spec.type for stage in stages for spec in stage.outputs}
    if others := sorted(types - BY_TYPE.keys()):
        return python_engine(CallerOptions(), f"the model has {', '.join(others)}")
    engine, _ = chosen("auto", None, CallerOptions(), None)
    return engine


def given_values(engine: Engine, inputs: Sequence[Input], folder: Path) -> dict[str, Any]:
    """Return a value for each input as an engine needs them; see `values_of`."""
    return values_of(inputs, folder, "buffers" if engine.name == "library" else "numpy")


def values_of(inputs: Sequence[Input], folder: Path, arrays: Arrays) -> dict[str, Any]:
    """Return a value for each input, from its file where it has one, else made up.

    Args:
        inputs: The model's inputs.
        folder: Where the files lie.
        arrays: Whether they are arrays of numpy, or tensors that do without it.
    """
    files = {each.name: str(folder / each.file) for each in inputs if each.file is not None}
    return example_inputs(inputs, load_feeds(files, arrays), arrays=arrays)


def in_form(engine: Engine, inputs: Iterable[Input], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of inputs in the form of the runtime; those of an input that has none are left out."""
    return {
        each.name: engine.value(TensorSpec(each.name, each.type, each.shape), values[each.name])
        for each in inputs
        if each.name in values
    }


def start_runtime(engine: Engine, folder: Path) -> None:
    """Have the runtime start, on the smallest model there is; its file is gone afterwards.

    Args:
        engine: What runs it.
        folder: Where it is written.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".start-") as made:
        tiny = Path(made) / "tiny.onnx"
        tiny.write_bytes(TINY_MODEL)
        engine.open(str(tiny), prepack=False, mapped=False, optimize=False, background=False, share_memory=False)


def opener(
    engine: Engine,
    folder: Path,
    stage: StageFile,
    *,
    prepack: bool,
    mapped: bool = True,
    share_memory: bool = False,
) -> Callable[[], Any]:
    """Return what makes a session on a stage as the loader does, anew with each call; see `session.open_session`."""
    return partial(
        engine.open, str(folder / stage.graph), prepack=prepack, mapped=mapped, optimize=stage.optimizes(prepack),
        background=False, share_memory=share_memory,
    )  # fmt: skip


def run(engine: Engine, session: Any, stage: StageFile, values: Mapping[str, Any]) -> list[Any]:
    """Return all outputs of a stage, in the form of the runtime."""
    names = [spec.name for spec in stage.outputs]
    boundaries = engine.boundaries(set())
    return engine.run_stage(session, stage, names, values, None, keep=False, boundaries=boundaries)
