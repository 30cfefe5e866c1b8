"""This process's onnxruntime, as the runtime that a graph is made for; it needs no onnx, which devices lack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from splitload.base.errors import SplitloadError
from splitload.base.machine import cpu_architecture
from splitload.bundle.manifest import StageEntry, TensorSpec
from splitload.graphs.observe import plain_options
from splitload.graphs.runtime import (
    Beside,
    GraphPiece,
    How,
    Level,
    Model,
    Race,
    Refusal,
    Signature,
    StageRefusal,
    in_turns,
)
from splitload.runtime.inputs import DTYPES
from splitload.runtime.session import open_session, run_stage, still_read, to_python
from splitload.runtime.settings import written_entries
from splitload.runtime.stock import path_option, session_beside, stock_session


class StageWay(NamedTuple):
    """A stage file, what it reads and gives, and how it is opened.

    Attributes:
        path: The .ort or .onnx file.
        inputs: Names of what it reads.
        outputs: What it gives.
        options: Of `open_session`.
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    options: Mapping[str, bool]


class Here:
    """The `GraphRuntime` of this process."""

    words = "this host"
    is_here = True

    @property
    def cpu(self) -> str:
        """This machine's kind of processor."""
        return cpu_architecture()

    @property
    def version(self) -> str:
        """The version of onnxruntime that is installed."""
        import onnxruntime as ort

        version: str = ort.__version__
        return version

    def optimize(self, model: Model, target: Path, level: Level) -> Signature:
        """Optimise a model and write it; see `GraphRuntime.optimize`."""
        import onnxruntime as ort

        levels = ort.GraphOptimizationLevel
        options = plain_options()
        options.graph_optimization_level = {
            "all": levels.ORT_ENABLE_ALL,
            "basic": levels.ORT_ENABLE_BASIC,
            "none": levels.ORT_DISABLE_ALL,
        }[level]
        options.optimized_model_filepath = path_option(target)
        for entry in written_entries(target.name).items():
            options.add_session_config_entry(*entry)
        with _refusals():
            return _signature(_session(model, options))

    def open(self, model: Model, *, optimize: bool = False, prepack: bool = False) -> Signature:
        """Open a model as a loader does; see `GraphRuntime.open`."""
        with _refusals():
            if isinstance(model, Beside):
                return _signature(_session(model, plain_options()))
            return _signature(open_session(model, optimize=optimize, prepack=prepack))

    def run(
        self, model: Model, outputs: Sequence[str], feeds: Mapping[str, Any], *, how: How = "plain", times: int = 1
    ) -> list[Any]:
        """Return outputs of a model; see `GraphRuntime.run`."""
        import onnxruntime as ort

        with _refusals():
            session = _session(model, _options(how))
            signature = _signature(session)
            stage = StageWay(Path(), tuple(spec.name for spec in signature.inputs), signature.outputs, {})
            for _ in range(times):
                values = run_stage(ort, session, stage, list(outputs), feeds, None)
            return [to_python(ort, value) for value in values]

    def shapes(
        self, folder: Path, pieces: Iterable[GraphPiece], feeds: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        """Run pieces of a graph one after the other; see `GraphRuntime.shapes`."""
        return seen_shapes(((Beside(folder, piece.data), piece) for piece in pieces), feeds)

    def race(self, changed: Path, original: Path, feeds: Mapping[str, Any]) -> Race:
        """Run two graphs on the same inputs, in turns; see `GraphRuntime.race`."""
        with _refusals():
            other = open_session(original)
        names = [value.name for value in other.get_outputs() if value.type in DTYPES]
        if not names:
            return Race(False)
        try:
            session = open_session(changed)
            runs = [partial(each.run, names, dict(feeds)) for each in (session, other)]
            pair = [run() for run in runs]
        except Exception:  # onnxruntime has no common root for its errors, and whatever it refuses stays as it was
            return Race(False)
        if not all(map(_alike, *pair)):
            return Race(False)
        return in_turns(*runs)

    def staged(
        self, folder: Path, stages: Sequence[StageEntry], outputs: Sequence[str], feeds: Mapping[str, Any]
    ) -> list[Any]:
        """Return outputs of a variant of a bundle; see `GraphRuntime.staged`."""
        ways = [
            StageWay(
                folder / stage.graph.name,
                stage.inputs,
                stage.outputs,
                {"prepack": stage.prepack, "mapped": stage.mapped, "optimize": stage.optimizes(stage.prepack)},
            )
            for stage in stages
        ]
        return run_staged(ways, outputs, feeds)


HERE = Here()


def run_staged(stages: Sequence[StageWay], outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
    """Return outputs of a model, run stage after stage with one session at a time in memory.

    Raises:
        StageRefusal: If a stage does not run.
    """
    import onnxruntime as ort

    values = dict(feeds)
    for number, stage in enumerate(stages):
        names = [spec.name for spec in stage.outputs]
        try:
            session = open_session(stage.path, **stage.options)
            values.update(zip(names, run_stage(ort, session, stage, names, values, None), strict=True))
            values = still_read(values, stages[number + 1 :], outputs)
        except Exception as error:  # onnxruntime has no common root for its errors
            raise StageRefusal(number, str(error)) from error
    return [to_python(ort, values[name]) for name in outputs]


def seen_shapes(pieces: Iterable[tuple[Model, GraphPiece]], feeds: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Run pieces of a graph one after the other; return the shape of each tensor that they make.

    Args:
        pieces: The model of each, which `GraphPiece.data` need not hold here.
        feeds: The graph's inputs, as arrays of numbers or OrtValues.

    Raises:
        Refusal: If one does not run.
    """
    import onnxruntime as ort

    given = {  # as OrtValues: numpy lacks some of their types
        name: value if isinstance(value, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(value)
        for name, value in feeds.items()
    }
    values = dict(given)
    shapes: dict[str, tuple[int, ...]] = {}
    options = plain_options()
    for model, piece in pieces:
        with _refusals():
            session = _session(model, options)
            ready = {name: values[name] for name in piece.reads if name in values}
            results = dict(zip(piece.makes, session.run_with_ort_values(list(piece.makes), ready), strict=True))
        shapes.update((name, tuple(value.shape())) for name, value in results.items() if value.is_tensor())
        values = {name: value for name, value in (values | results).items() if name in piece.kept or name in given}
        del session, ready, results
    return shapes


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise `Refusal` for what onnxruntime raises, which has no common root."""
    try:
        yield
    except (OSError, SplitloadError):
        raise
    except Exception as error:
        raise Refusal(str(error) or type(error).__name__) from error


def _options(how: How) -> Any:
    """Return the options of a session."""
    import onnxruntime as ort

    if how == "stock":
        options = ort.SessionOptions()
        options.log_severity_level = 4
        return options
    if how == "packed":
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
    else:
        options = plain_options()
    options.intra_op_num_threads = 1
    return options


def _session(model: Model, options: Any) -> Any:
    """Return a plain session on a model."""
    if isinstance(model, Beside):
        return session_beside(model.folder, model.data, options)
    return stock_session(model, options)


def _signature(session: Any) -> Signature:
    """Return what a session takes and gives."""
    takes, gives = (
        tuple(TensorSpec(each.name, each.type, tuple(each.shape)) for each in values)
        for values in (session.get_inputs(), session.get_outputs())
    )
    return Signature(takes, gives)


def _alike(left: Any, right: Any) -> bool:
    """Return whether two outputs are the same within rounding."""
    if left.shape != right.shape:
        return False
    if right.dtype.kind not in "fc":
        return bool(np.array_equal(left, right))
    scale = float(np.max(np.abs(right[np.isfinite(right)]), initial=0.0))
    return bool(np.allclose(left, right, rtol=1e-3, atol=1e-4 * scale + 1e-30, equal_nan=True))
