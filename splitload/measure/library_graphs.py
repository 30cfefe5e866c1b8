"""What jobs on graphs ask of onnxruntime, done by its C library: where numpy or the Python module is missing.

The methods are those of `GraphRuntime` that a job needs, on files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from splitload.base.machine import inference_threads
from splitload.graphs.runtime import GraphPiece, How, Level, Race, Refusal, Signature, StageRefusal, in_turns
from splitload.measure.likeness import alike
from splitload.measure.running import opener, run
from splitload.measure.stage_jobs import StageFile
from splitload.runtime.capi.engine import LibraryEngine
from splitload.runtime.capi.library import RuntimeFailure, library
from splitload.runtime.capi.session import Session, Value, open_session, usual_session, written_session
from splitload.runtime.inputs import Arrays
from splitload.runtime.session import still_read
from splitload.runtime.settings import DISABLE_ALL, ENABLE_ALL, ENABLE_BASIC, PLAIN, written_entries

_LEVELS: Mapping[Level, int] = {"all": ENABLE_ALL, "basic": ENABLE_BASIC, "none": DISABLE_ALL}
_ROUNDING = {2: 1e-3, 4: 1e-4, 8: 1e-4}  # by bytes of a float: what two graphs may differ by, of the largest value


class LibraryGraphs:
    """Graphs under the C library.

    Raises:
        NoLibraryError: If there is none.
    """

    arrays: Arrays = "buffers"

    def __init__(self) -> None:
        self._library = library()
        self.engine = LibraryEngine(self._library)

    def optimize(self, model: Path, target: Path, level: Level) -> Signature:
        """Optimise a model and write it; see `GraphRuntime.optimize`."""
        entries = PLAIN | written_entries(target.name)
        with _refusals():
            return _signature(written_session(self._library, model, target, entries, level=_LEVELS[level]))

    def open(self, model: Path, *, optimize: bool, prepack: bool) -> Signature:
        """Open a model as a loader does; see `GraphRuntime.open`."""
        with _refusals():
            return _signature(self._opened(model, prepack=prepack, optimize=optimize))

    def run(self, model: Path, outputs: Sequence[str], feeds: Mapping[str, Any], *, how: How, times: int) -> list[Any]:
        """Return outputs of a model, as tensors; see `GraphRuntime.run`."""
        with _refusals():
            if how == "stock":
                session = usual_session(self._library, model, {}, optimize=True)
            else:
                session = open_session(self._library, model, PLAIN if how == "plain" else {}, threads=1)
            for _ in range(times):
                values = session.run(list(outputs), self._given(feeds), {})
            return [self.engine.answer(value) for value in values]

    def shapes(self, pieces: Iterable[tuple[Path, GraphPiece]], feeds: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Run pieces of a graph one after the other; see `GraphRuntime.shapes`."""
        given = self._given(feeds)
        values: dict[str, Value] = dict(given)
        shapes: dict[str, tuple[int, ...]] = {}
        for model, piece in pieces:
            with _refusals():
                session = open_session(self._library, model, PLAIN, threads=inference_threads())
                ready = {name: values[name] for name in piece.reads if name in values}
                results = dict(zip(piece.makes, session.run(piece.makes, ready, {}), strict=True))
                shapes.update((name, tuple(value.memory.shape)) for name, value in results.items())
            values = {name: value for name, value in (values | results).items() if name in piece.kept or name in given}
        return shapes

    def race(self, changed: Path, original: Path, feeds: Mapping[str, Any]) -> Race:
        """Run two graphs on the same inputs, in turns; see `GraphRuntime.race`."""
        given = self._given(feeds)
        with _refusals():
            other = self._opened(original)
        names = other.output_names()
        try:
            session = self._opened(changed)
            runs = [partial(each.run, names, given, {}) for each in (session, other)]
            pair = [run() for run in runs]
        except RuntimeFailure:
            return Race(False)
        if not all(map(partial(alike, rounding=_ROUNDING), *pair)):
            return Race(False)
        return in_turns(*runs)

    def staged(
        self, folder: Path, stages: Sequence[StageFile], outputs: Sequence[str], feeds: Mapping[str, Any]
    ) -> list[Any]:
        """Return outputs of a variant of a bundle, as tensors; see `GraphRuntime.staged`."""
        values: dict[str, Any] = self._given(feeds)
        for number, stage in enumerate(stages):
            try:
                results = run(self.engine, opener(self.engine, folder, stage, prepack=stage.prepack)(), stage, values)
            except Exception as error:  # what the Python module would raise, which has no common root
                raise StageRefusal(number, str(error)) from error
            values.update(zip((spec.name for spec in stage.outputs), results, strict=True))
            values = still_read(values, stages[number + 1 :], outputs)
        return [self.engine.answer(values[name]) for name in outputs]

    def _given(self, feeds: Mapping[str, Any]) -> dict[str, Value]:
        return {name: self.engine.value(None, value) for name, value in feeds.items()}

    def _opened(self, model: Path, *, prepack: bool = False, optimize: bool = False) -> Session:
        entries = {} if prepack else PLAIN
        return open_session(self._library, model, entries, threads=inference_threads(), optimize=optimize)


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise `Refusal` for what the library returns, in the words of the Python module."""
    try:
        yield
    except RuntimeFailure as failure:
        raise Refusal(str(failure.error())) from failure


def _signature(session: Session) -> Signature:
    return Signature(*map(tuple, session.signature()))
