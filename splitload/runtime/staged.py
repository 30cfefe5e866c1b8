"""The stages of one variant in one engine: on their way, run through, made anew for speed."""

from __future__ import annotations

import time

from splitload.base.errors import StageError
from splitload.bundle.manifest import Manifest, Variant
from splitload.runtime.feeds import arrays_of
from splitload.runtime.opening import LoadingParts, StageOpener
from splitload.runtime.ordered import OrderedLoading, enlist
from splitload.runtime.pool import report
from splitload.runtime.upgrade import Upgrade

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Literal

    from splitload.base.regular import StrPath
    from splitload.plan.schedule import Schedule  # importing it costs a loader 0.5 ms
    from splitload.runtime.engine import Engine
    from splitload.runtime.ledger import Run
    from splitload.runtime.residency import Residency

    Done = tuple[int, Literal["load", "infer"], int, float, float]  # the fields of a `schedule.Task`


class _NoCeiling:
    """The room of a run where weights stay in memory."""

    def using(self, stage: int) -> _NoCeiling:
        """See `Run.using`: weights are there already."""
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


_ALL = _NoCeiling()


class Staged:
    """Stages that are loaded once, in order; who has to begin anew makes another one.

    Attributes:
        engine: What loads and runs them.
        loading: On their way.
        upgrade: Made anew.
        has_answered: Whether a run has come to its end.
        has_given_way: Whether another has taken its place.
        given_up: What else has to know that nothing more will be loaded.

    Args:
        folder: The bundle, as errors name it.
        variant: Whose stages they are.
        engine: What loads and runs them.
        opener: Makes sessions by it.
        parts: See `LoadingParts`.
        residency: What keeps the stages below a ceiling; None where there is none.
        is_upgraded: Whether stages are made anew for speed where it pays.
        on_progress: See `ParallelLoader`, or None.
        given_up: What else has to know that nothing more will be loaded.
    """

    def __init__(
        self,
        folder: StrPath,
        variant: Variant,
        engine: Engine,
        opener: StageOpener,
        parts: LoadingParts,
        *,
        residency: Residency | None = None,
        is_upgraded: bool,
        on_progress: Callable[[int, int], None] | None,
        given_up: Sequence[Callable[[], None]],
    ) -> None:
        self.engine, self.variant, self.residency = engine, variant, residency
        self._folder, self._opener, self._parts = folder, opener, parts
        self._is_upgraded, self._on_progress = is_upgraded, on_progress
        self._start_s = time.perf_counter()
        self._otherwise: set[str] = set()
        self._first_runs: dict[int, Done] = {}
        self.has_answered = self.has_given_way = False
        self.given_up = list(given_up)  # the loading has this very list
        if residency is not None:
            self.given_up.append(residency.close)
        self.loading: OrderedLoading = OrderedLoading(
            folder, len(variant.stages), parts.pool,
            hand_over_s=parts.hand_over_s, lets_go=True, given_up=self.given_up,
        )  # fmt: skip
        self._upgrade_it()

    def _upgrade_it(self) -> None:
        enlist(self.loading)  # a thread that has yet to begin may hold it when the loader is gone
        self.upgrade = Upgrade(self.loading, self.variant.stages, self._opener.faster, is_wanted=self._is_upgraded)

    def begin(self, threads: int, start_s: float) -> None:
        """Have the pool load the stages; see `OrderedLoading.start`."""
        self._start_s = start_s
        self.loading.start(threads, self._load, self._after_load, start_s)

    def heir(self, given_up: Sequence[Callable[[], None]]) -> Staged:
        """Return what takes its place in a forked child, see `OrderedLoading.heir`."""
        heir = Staged(
            self._folder, self.variant, self.engine, self._opener, self._parts,
            residency=None if self.residency is None else self.residency.heir(),
            is_upgraded=self._is_upgraded, on_progress=self._on_progress, given_up=given_up,
        )  # fmt: skip
        heir.loading = self.loading.heir(heir.given_up)
        heir._upgrade_it()
        return heir

    def give_way(self) -> None:
        """Load no more and make nothing anew, as another is used; runs under way go on through what is loaded.

        It does not wait for a stage that is being loaded, which comes to nothing.
        """
        self.given_up.clear()
        self.has_given_way = True
        try:
            self.loading.give_up()
        except BaseException:  # an interrupt: those who wait for a stage must know
            self.loading.give_up()
            raise

    def wait(self, deadline_s: float | None, *, upgraded: bool) -> bool:
        """Wait until all stages are loaded; return whether they are.

        Args:
            deadline_s: For how long, by `time.perf_counter`; None for no limit.
            upgraded: Whether to have them made anew for speed, and to wait for that too.

        Raises:
            StageError: If one could not be loaded, or nothing more will be.
        """

        def left_s() -> float | None:
            return None if deadline_s is None else deadline_s - time.perf_counter()

        in_time = self.loading.all_loaded.wait(left_s())
        if in_time:
            self.loading.check()
        if in_time and upgraded:
            self.upgrade.begin()
            in_time = not self.upgrade.is_wanted or self.upgrade.done.wait(left_s())
            self.loading.check()
        return in_time

    def session(self, index: int) -> Any:
        """Return the session of a stage, waiting for it."""
        loading = self.loading
        if not self.has_answered:
            loading.load_here(self._load, self._after_load)
        session = loading.take(index)
        if session is None or loading.error is not None:
            session = None  # the error, with its traceback, would keep it
            loading.check()
        return session

    def run(self, wanted: Sequence[str], values: dict[str, Any], run_options: Any, *, keep: bool) -> dict[str, Any]:
        """Run the stages that outputs need; return values in the engine's form, those wanted among them.

        Args:
            wanted: Names of outputs.
            values: The inputs, which are changed.
            run_options: An `onnxruntime.RunOptions` or None.
            keep: Whether all values are OrtValues and stay such.
        """
        if self.residency is None:
            return self._run(wanted, values, run_options, _ALL, keep=keep)
        room = self.residency.run(values)
        try:
            with room:
                return self._run(wanted, values, run_options, room, keep=keep)
        except BaseException as error:
            room.end()  # an interrupt may have come before or behind the block
            if isinstance(error, StageError):
                self.loading.check()  # which knows why it was closed
            raise

    def _run(
        self, wanted: Sequence[str], values: dict[str, Any], run_options: Any, room: Run | _NoCeiling, *, keep: bool
    ) -> dict[str, Any]:
        """See `run`; `room` is what this run may take of the memory under a ceiling."""
        engine = self.engine
        boundaries = engine.boundaries(self._otherwise)
        for index, needed, last_reads in self.variant.steps(wanted):
            use = room.using(index)
            session = self.session(index)
            start_s = time.perf_counter()
            with use:
                results = engine.run_stage(
                    session, self.variant.stages[index], needed, values, run_options, keep=keep, boundaries=boundaries
                )
            del session  # the error of a later stage, with its traceback, would keep it
            self.note_run(index, start_s)
            for name in last_reads:
                boundaries.take_back(values.pop(name, None))
            values.update(zip(needed, results, strict=True))
        return values

    def run_whole(
        self, wanted: Sequence[str], manifest: Manifest, feeds: Mapping[str, Any], run_options: Any, *, keep: bool
    ) -> list[Any]:
        """Run the only stage, whose inputs and outputs are the model's, by the Python module, which checks them itself.

        Args:
            wanted: Names of outputs.
            manifest: What the model has.
            feeds: A value for each input, by name.
            run_options: An `onnxruntime.RunOptions` or None.
            keep: Whether all values are OrtValues and stay such.
        """
        session = self.session(0)
        start_s = time.perf_counter()
        if keep:
            results: list[Any] = session.run_with_ort_values(wanted, feeds, run_options)
        else:
            results = session.run(wanted, arrays_of(manifest, feeds), run_options)
        if not self.has_answered:
            self.note_run(0, start_s)
        return results

    def note_run(self, index: int, start_s: float) -> None:
        """Note when the first inference of a stage was, which ends now."""
        if index not in self._first_runs:
            end_s = time.perf_counter()
            self._first_runs.setdefault(index, (index, "infer", 0, start_s - self._start_s, end_s - self._start_s))

    def note_answer(self) -> None:
        """Begin what had to wait for the first answer."""
        self.has_answered = True
        self.upgrade.begin()

    @property
    def timeline(self) -> Schedule:
        """The loads so far and each stage's first inference, in seconds from the load call, as measured."""
        from splitload.plan.schedule import Schedule, Task

        with self.loading.lock:
            loads = [Task(index, "load", *load) for index, load in self.loading.loads.items()]
            runs = [Task(*done) for done in self._first_runs.copy().values()]
        return Schedule(tuple(sorted([*loads, *runs], key=lambda task: (task.start_s, task.end_s))), "measured")

    def _load(self, index: int, lane: int) -> Any:
        stage = self.variant.stages[index]
        if self.residency is None:
            return self._opener.first(stage)
        use = self.residency.loading(index)
        try:
            with use:
                session = self.residency.opened(index, lambda: self._opener.first(stage))
        except BaseException:
            use.end()
            raise
        return session

    def _after_load(self, index: int, loaded: int) -> None:
        if self.has_answered:
            self.upgrade.begin()
        self._report(loaded)

    def _report(self, loaded: int) -> None:
        """Call `on_progress`; it must not be able to stop the loading."""
        if self._on_progress is None:
            return
        try:
            self._on_progress(loaded, len(self.variant.stages))
        except BaseException as error:  # not even SystemExit: others wait for this thread
            self._on_progress = None
            import threading

            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise  # it is the user's: the stage is loaded, and `run` was waiting for it here
            report(error)
