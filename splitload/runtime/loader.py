"""ParallelLoader: loads the stages of a bundle on a thread pool, and infers through those that are there."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from splitload.base.errors import PortableWarning, StageError, UsageError
from splitload.base.machine import available_threads, return_memory
from splitload.bundle.manifest import DEFAULT_TAIL, Manifest, StageEntry, Variant, without_tail
from splitload.bundle.read import Verify, read_manifest
from splitload.runtime.arena import empty_arena
from splitload.runtime.boundaries import Boundaries
from splitload.runtime.canary import remember
from splitload.runtime.drop_in import DropIn
from splitload.runtime.feeds import checked, given_back
from splitload.runtime.options import CallerOptions
from splitload.runtime.pool import Latch, LoadingPool, report, started
from splitload.runtime.session import fetch, is_cached, open_session, read_ahead, run_stage, to_python
from splitload.runtime.variants import choose, likely

if TYPE_CHECKING:
    from splitload.bundle.tails import Tail
    from splitload.plan.schedule import Schedule  # half a millisecond of import for who only loads
    from splitload.runtime.background import Specializer

Done = tuple[int, Literal["load", "infer"], int, float, float]  # the fields of a `schedule.Task`
HAND_OVER_S = 0.001
_alive: weakref.WeakSet[ParallelLoader] = weakref.WeakSet()
_told: set[Path] = set()  # bundles of which it was said that their portable graph runs


_pool = LoadingPool(available_threads())


def _renew_pool() -> None:
    """Give a forked child a pool of its own: the parent's threads stayed there, and with them what they load."""
    global _pool
    _pool = LoadingPool(available_threads())
    for loader in list(_alive):
        loader._inherit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_pool)


def submit(job: Callable[[], None], at_least: int = 1) -> bool:
    """Run a job on the process's pool of loading threads, see `LoadingPool.submit`."""
    return _pool.submit(job, at_least)


@atexit.register
def _close_all() -> None:
    """Let no thread be inside onnxruntime when the interpreter goes away: that would abort the process."""
    for loader in list(_alive):
        while True:
            try:
                loader._let_go()
                break
            except (KeyboardInterrupt, SystemExit):  # the process ends as it is, and cannot sooner
                pass


class ParallelLoader(DropIn):
    """A model that answers while it loads; a drop-in for `onnxruntime.InferenceSession`, see `docs/drop-in.md`.

    Returns at once. `threads` stages load at a time, in order; with fewer stages than threads all load at
    the same time, otherwise the rest wait their turn while loaded stages infer (Algorithm 2). They load on one pool of
    threads for all models of the process, which take turns there. `run` waits for each
    stage only when it gets there. May be called from many threads at any time. The first stage that fails cancels
    the rest, and its error is what every call raises. What is still open when the interpreter exits is closed then.
    A forked child that uses an inherited loader loads the bundle anew, at the first use, and nothing of the parent's.

    Args:
        bundle: The `NAME.splitload` folder.
        sess_options: An `onnxruntime.SessionOptions`; what it says of threads holds for every stage.
        providers: Execution providers, the processor among them; None for the processor.
        provider_options: Their options.
        threads: How many stages load at a time, at least 1; None takes the bundle's execution scheme, but no more than
            the process has processors.
        overlap: Whether inference may start before all stages are loaded; False waits for all.
        verify: What is checked first: "none", "sizes" or "hashes" of the files. The last reads every byte; with the
            others a weight that was changed in place goes unnoticed, unless `splitload verify` has been run.
        tail: Name of the personalized last stage to load; None for the one it was built with, which is loaded as well
            where the default one was not made yet.
        frozen_only: Whether to leave the last stage, which is trained, out: what it reads is the output then.
        upgrade: Whether stages whose entry says that it pays are made anew after the first answer, in the background
            and at low priority, with weights rearranged for speed, and swapped in one by one; a run under way may use
            some of both. Nothing of the old ones stays in memory.
        on_progress: Called as `on_progress(stages_loaded, num_stages)` after each stage, from the thread that loaded
            it: one of the pool, perhaps two at once, or with a single stage the one that calls `run`. It must not wait
            for a model. If it raises, `threading.excepthook` reports that, loading goes on, and it is not called again;
            an interrupt of the main thread meanwhile ends `run`.
        specialize: "background" makes a native variant for this machine after the first answer, where only the portable
            one runs, for the next start that asks for it too; see `background.py`.

    Attributes:
        manifest: What the bundle says.
        tail: The personalized last stage, or None.
        variant: What runs here.
        why_portable: Why that is not a native variant, though the bundle has one, and what helps; else None. A
            `PortableWarning` says it too, once a bundle and process.
        threads: How many stages load at a time.

    Raises:
        BundleError: If the bundle is incomplete or damaged.
        MissingPackageError: If onnxruntime is older than splitload needs.
        UsageError: If `threads` is below 1, the bundle has no such `tail`, `frozen_only` is asked of a bundle that was
            built without trainable layers, or a session's options ask for what a bundle cannot do.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Mapping[Any, Any]] | None = None,
        *,
        threads: int | None = None,
        overlap: bool = True,
        verify: Verify = "sizes",
        tail: str | None = DEFAULT_TAIL,
        frozen_only: bool = False,
        upgrade: bool = True,
        on_progress: Callable[[int, int], None] | None = None,
        enable_fallback: int = 1,
        read_config_from_model: int = 0,
        disabled_optimizers: Iterable[str] | None = None,
        specialize: Literal["background"] | None = None,
    ) -> None:
        if not isinstance(bundle, str | os.PathLike):
            raise UsageError(
                f"a bundle is the path of a folder, not {type(bundle).__name__}; splitload.InferenceSession takes the "
                "bytes of a model"
            )
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise UsageError(f"threads must be a whole number of at least 1, it is {threads!r}")
        if specialize not in (None, "background"):
            raise UsageError(f"specialize takes 'background' or None, not {specialize!r}")
        self._start = time.perf_counter()
        self._folder = Path(bundle).resolve()  # wherever the caller goes meanwhile
        self.manifest: Manifest = read_manifest(self._folder, verify)
        self.tail: Tail | None = None
        if frozen_only:
            self.manifest = without_tail(self.manifest)
        elif tail not in (None, DEFAULT_TAIL) and self.manifest.training is None:
            raise UsageError(f"'{bundle}' has no trainable stage, and so no tail '{tail}'")
        elif tail is not None and self.manifest.training is not None:
            from splitload.bundle.tails import check_known, open_tail  # for the bundles that have one

            check_known(self._folder, tail)
            self.tail = open_tail(self._folder, tail, self.manifest.variants[-1].stages[-1], verify=verify)
        self._closed = False
        self._error: Exception | None = None
        self._stages_folder = self._folder
        guess: Variant | None = likely(self.manifest)
        if guess is not None and specialize is not None and guess.kind == "portable":
            guess = None  # the cache may hold a native one, which is known by the runtime's version
        self._fetches = guess is not None and self._read_early(guess)
        try:
            import onnxruntime as ort

            self._ort = ort
            self._caller = CallerOptions(
                sess_options,
                providers,
                provider_options,
                enable_fallback=enable_fallback,
                read_config_from_model=read_config_from_model,
                disabled_optimizers=disabled_optimizers,
            )
            stored, self.manifest = self.manifest, self._caller.fixed(self.manifest)
            self.variant, self.why_portable = choose(
                self._folder, self.manifest, ort.__version__, own_threads=self._caller.own_threads
            )
            self._specializer = self._find_specializer(stored) if specialize is not None else None
            if self.variant is not guess:
                self._fetches = self._read_early(self.variant)
            if self.why_portable is not None and self._folder not in _told:
                _told.add(self._folder)
                warnings.warn(self.why_portable, PortableWarning, stacklevel=2)
        except BaseException:  # nobody will ask for what is being read
            self._closed = True
            raise
        stages = self.variant.stages
        self._overlap = overlap and self.variant.overlap
        self._outputs = [spec.name for spec in self.manifest.outputs]
        self._is_model = (
            len(stages) == 1
            and self.manifest is stored
            and set(stages[0].inputs) == {spec.name for spec in self.manifest.inputs}
            and {spec.name for spec in stages[0].outputs} == set(self._outputs)
        )
        self._upgrade = upgrade and self._caller.prepacks and any(stage.upgrade for stage in stages)
        self._on_progress = on_progress
        self._otherwise: set[str] = set()
        self._wanted = min(threads or min(self.variant.threads, available_threads()), len(stages))
        self._reset()
        _alive.add(self)
        self._begin()

    def _find_specializer(self, manifest: Manifest) -> Specializer | None:
        """Take the native variant that an earlier run has made, or return what makes one where it is wanted."""
        from splitload.runtime.background import Specializer, cached

        if self.variant.kind == "native":
            return None
        if found := cached(manifest, self._ort.__version__):
            (self._stages_folder, self.variant), self.why_portable = found, None
            return None
        last = None if self.tail is None else self.tail.graph
        return Specializer(self._folder, manifest, last, self._caller, self._inside)

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """Run a block of the specializer's inside the runtime, for whose end `close` waits."""
        lane = -2
        with self._lock:
            if self._is_over():
                raise StageError(f"'{self._folder}' was closed")
            self._busy[lane] = threading.get_ident()
        try:
            yield
        finally:
            self._leave(lane)

    def _reset(self) -> None:
        """Forget every stage, as before the first is loaded."""
        stages = self.variant.stages
        self._sessions: list[Any] = [None] * len(stages)
        self._events = [Latch() for _ in stages]
        self._all_loaded, self._upgraded, self._asked_for, self._left = Latch(), Latch(), Latch(), Latch()
        self._lock = threading.Lock()
        self._next = 0
        self._answered = False
        self._loads: dict[int, Done] = {}
        self._first_runs: dict[int, Done] = {}
        self._busy: dict[int, int] = {}  # identifier of the thread inside the runtime, by lane
        self._upgrade_begun = False
        self._is_inherited = False  # by a forked child, which has not used it yet
        self.threads = 0

    def _begin(self) -> None:
        """Have the pool load the stages."""
        load = self._load_next if len(self._sessions) > 1 else self._load_soon
        try:
            for lane in range(self._wanted):
                if _pool.submit(functools.partial(load, lane), self._wanted):
                    self.threads += 1
        except BaseException:  # an interrupt: nobody will ask for what was begun
            self.close()
            raise
        if not self.threads:
            error = StageError(f"cannot load '{self._folder}': the system has no thread left to load it with")
            with self._lock:
                self._give_up(error)
            raise error

    def _compute(
        self, output_names: Sequence[str] | None, feeds: Mapping[str, Any], run_options: Any, *, keep: bool = False
    ) -> list[Any]:
        """Run the stages that the named outputs need; see `run`, and `DropIn._compute`."""
        self._enter()
        if self._is_model:
            return self._run_whole(output_names, feeds, run_options, keep)
        wanted, values = checked(self._ort, self.manifest, output_names, feeds)
        if not self._overlap:
            self.wait()
        boundaries = Boundaries(self._otherwise)
        for index, needed, last_reads in self.variant.steps(wanted):
            stage = self.variant.stages[index]
            session = self._session(index)
            start = time.perf_counter()
            results = run_stage(
                self._ort, session, stage, needed, values, run_options, keep=keep, boundaries=boundaries
            )
            if index not in self._first_runs:
                end = time.perf_counter()
                self._first_runs.setdefault(index, (index, "infer", 0, start - self._start, end - self._start))
            for name in last_reads:
                boundaries.take_back(values.pop(name, None))
            values.update(zip(needed, results, strict=True))
        self._note_answer()
        answers = [values[name] for name in wanted]
        if not keep:  # else a session too gives back the OrtValue that it was given
            inputs = {spec.name: spec for spec in self.manifest.inputs}
            answers = [
                given_back(self._ort, inputs[name], value) if name in inputs else to_python(self._ort, value)
                for name, value in zip(wanted, answers, strict=True)
            ]
        if self._specializer is not None:
            self._specializer.answered(feeds, wanted, answers)
        return answers

    def _run_whole(
        self, output_names: Sequence[str] | None, feeds: Mapping[str, Any], run_options: Any, keep: bool
    ) -> list[Any]:
        """Run the only stage, whose inputs and outputs are the model's: the runtime checks them itself."""
        session = self._session(0)
        start = time.perf_counter()
        run = session.run_with_ort_values if keep else session.run
        results: list[Any] = run(output_names or self._outputs, feeds, run_options)
        if not self._answered:
            end = time.perf_counter()
            self._first_runs.setdefault(0, (0, "infer", 0, start - self._start, end - self._start))
            self._note_answer()
        if self._specializer is not None:
            self._specializer.answered(feeds, list(output_names or self._outputs), results)
        return results

    def _note_answer(self) -> None:
        """Begin what had to wait for the first answer."""
        self._answered = True
        remember()
        self._start_upgrade()

    def wait(self, until: str | float = "loaded", timeout: float | None = None) -> bool:
        """Wait until all stages are loaded ("loaded"), made anew for speed ("upgraded") or natively ("specialized").

        `wait(2.5)` is `wait("loaded", 2.5)`. Waiting for "upgraded" does not wait for a first `run`, it starts the
        upgrade itself; it returns at once when `upgrade` is off. Waiting for "specialized" waits for a first `run` too;
        it returns at once when there is nothing to make.

        Returns:
            Whether that was reached within `timeout` seconds (None: no limit).

        Raises:
            StageError: If a stage could not be loaded, or the loader is closed.
        """
        if isinstance(until, int | float):
            timeout, until = until, "loaded"
        if timeout is not None:
            timeout = min(timeout, threading.TIMEOUT_MAX)  # there are whole numbers that no float holds
        self._enter()
        if until not in ("loaded", "upgraded", "specialized"):
            raise UsageError(f"wait takes 'loaded', 'upgraded' or 'specialized', not {until!r}")
        if until == "specialized":
            made = self._specializer is None or self._specializer.done.wait(timeout)
            self._raise_if_failed()
            return made
        start = time.perf_counter()
        if not self._all_loaded.wait(timeout):
            return False
        self._raise_if_failed()
        if until == "loaded":
            return True
        self._start_upgrade()
        if not self._upgrade:
            return True
        in_time = self._upgraded.wait(None if timeout is None else timeout - (time.perf_counter() - start))
        self._raise_if_failed()
        return in_time

    @property
    def ready(self) -> bool:
        """Whether every stage is loaded."""
        return len(self._loads) == len(self._sessions) and not self._closed

    @property
    def timeline(self) -> Schedule:
        """The loads so far and each stage's first inference, in seconds from the load call, as measured."""
        from splitload.plan.schedule import Schedule, Task

        with self._lock:
            tasks = [Task(*done) for done in (*self._loads.values(), *self._first_runs.copy().values())]
        return Schedule(tuple(sorted(tasks, key=lambda task: (task.start_s, task.end_s))), "measured")

    def close(self) -> None:
        """Stop loading and let go of all stages; calls under way end with an error or their result."""
        remember()
        self._let_go()
        if len(self._sessions) > 1:
            empty_arena(self._ort, own_threads=self._caller.own_threads)

    def _let_go(self) -> None:
        try:
            with self._lock:
                self._give_up()
                # on_progress may close: two threads that load would wait for each other
                wait = self._busy and threading.get_ident() not in self._busy.values()
            if wait:
                self._left.wait()
            with self._lock:
                self._sessions = [None] * len(self._sessions)
        except BaseException:  # an interrupt: those who wait for a stage must know
            with self._lock:
                self._give_up()
            raise

    def _give_up(self, error: Exception | None = None) -> None:
        """Hand out no more stages, as the loader is closed or a stage failed, and wake everyone who waits for one.

        The caller holds the lock.
        """
        num_stages = len(self._sessions)
        if error is None:
            self._next, self._closed = num_stages, True
        else:
            self._next, self._error = num_stages, error
        for latch in (*self._events, self._all_loaded, self._upgraded):
            latch.set()
        if self._specializer is not None:
            self._specializer.cancel()

    def _leave(self, lane: int) -> None:
        """Note that this thread is no longer inside the runtime, where no process may end."""
        with self._lock:
            if self._busy.get(lane) == threading.get_ident():
                del self._busy[lane]
            if self._closed and not self._busy:
                self._left.set()

    def _inherit(self) -> None:
        """Become, in a forked child, a loader that loads anew once it is used; closed or failed ones stay so.

        Threads that load, and locks they hold, stayed with the parent. So did the threads of the sessions, for which
        the runtime would wait when it frees them: they are kept for good, and never run.
        """
        inherited = [*self._sessions, self._caller.stand_in_made]
        self._reset()
        self._specializer = None  # the parent makes that variant
        self._is_inherited = True
        if self._is_over():
            self._give_up(self._error)
        with contextlib.suppress(ImportError, AttributeError):
            import ctypes

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))

    def _enter(self) -> None:
        """Raise if the loader failed or is closed; begin to load if it is a forked child's, and this its first use."""
        if self._is_inherited:
            with self._lock:
                first, self._is_inherited = self._is_inherited, False
            if first and not self._is_over():
                self._start = time.perf_counter()
                self._fetches = self._read_early(self.variant)
                self._begin()
        self._raise_if_failed()

    def __enter__(self) -> ParallelLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load_soon(self, lane: int) -> None:
        """Load the only stage, unless `run` is called within a moment and does so itself, which saves a thread's start.

        On the thread that goes on to run it a session is made faster than on another one: by 3 ms of 18, on a machine
        of two processors.
        """
        self._asked_for.wait(HAND_OVER_S)
        self._load_next(lane)

    def _load_here(self) -> None:
        """Load the only stage on this thread, if no other has begun to."""
        self._asked_for.set()
        try:
            self._load_next(0)
        except BaseException:  # an interrupt, anywhere: what was begun is finished, here or by someone else
            self._leave(0)
            with self._lock:
                again = not (self._loads or self._busy or self._is_over())
                if again:
                    self._next = 0
                elif self._loads:
                    self._tell(0)
                elif self._is_over():
                    self._give_up(self._error)
            if again and not _pool.submit(functools.partial(self._load_next, 0)):
                self._fail(0, StageError("it was interrupted, and the system has no thread left to load it with"))
            raise

    def _load_next(self, lane: int) -> None:
        """Load the next stage, then make room for other models; one turn on a thread of the pool."""
        here = threading.get_ident()
        with self._lock:
            index = self._next
            if index >= len(self._sessions):
                return
            self._busy[lane] = here
            self._next = index + 1
        try:
            self._load(index, lane)
        finally:
            self._leave(lane)
        if self._next < len(self._sessions):
            _pool.submit(functools.partial(self._load_next, lane), self.threads)

    def _load(self, index: int, lane: int) -> None:
        """Load a stage, and tell those who wait for it."""
        stage = self.variant.stages[index]
        start = time.perf_counter()
        try:
            session = self._open(stage, prepack=stage.prepack)
        except Exception as error:  # onnxruntime has no common root for its errors
            self._fail(index, error)
            return
        end = time.perf_counter()
        with self._lock:
            if self._closed:
                return
            self._sessions[index] = session
            self._loads[index] = (index, "load", lane, start - self._start, end - self._start)
            loaded = len(self._loads)
            self._tell(index)
        if self._answered:
            self._start_upgrade()
        self._report(loaded)

    def _tell(self, index: int) -> None:
        """Wake who waits for a stage that is loaded; the caller holds the lock."""
        if len(self._loads) == len(self._sessions):
            self._all_loaded.set()
        self._events[index].set()

    def _read_early(self, variant: Variant) -> bool:
        """Begin to read a variant, perhaps before onnxruntime is imported; what was fetched of another one stops.

        Returns:
            Whether storage has to be read: then one thread fetches all stages that have a `read_order`.
        """
        self._early = variant
        files = [(self._path(stage), stage.read_order) for stage in variant.stages if stage.read_order]
        if not all(is_cached(*file) for file in files):

            def stopped() -> bool:
                return self._is_over() or self._early is not variant

            return started(threading.Thread(target=fetch, args=(files, stopped), daemon=True))
        if "onnxruntime" not in sys.modules:
            for stage in variant.stages:
                if stage.prefetch:
                    started(threading.Thread(target=read_ahead, args=(self._path(stage),), daemon=True))
        return False

    def _path(self, stage: StageEntry) -> Path:
        """Return the graph file that is loaded for a stage."""
        if self.tail is not None and stage.trainable:
            return self.tail.graph
        return self._stages_folder / stage.graph.name

    def _open(self, stage: StageEntry, *, prepack: bool, background: bool = False) -> Any:
        """Return a session on a stage, in the way its entry says."""
        path = self._path(stage)
        if stage.prefetch and not background and not (self._fetches and stage.read_order):
            started(threading.Thread(target=read_ahead, args=(path,), daemon=True))
        return open_session(
            path,
            prepack=prepack,
            mapped=stage.mapped,
            optimize=not stage.optimized or (prepack and stage.reoptimize),
            background=background,
            options=self._caller.copy(),
            share_memory=len(self._sessions) > 1,
        )

    def _report(self, loaded: int) -> None:
        """Call `on_progress`; it must not be able to stop the loading."""
        if self._on_progress is None:
            return
        try:
            self._on_progress(loaded, len(self._sessions))
        except BaseException as error:  # not even SystemExit: others wait for this thread
            self._on_progress = None
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise  # it is the user's: the stage is loaded, and `run` was waiting for it here
            report(error)

    def _fail(self, index: int, error: Exception) -> None:
        """Keep the first error, hand out no more stages, and wake everyone who waits."""
        with self._lock:
            text = " ".join(str(error).split())[:300]
            failure = StageError(f"stage {index + 1} of '{self._folder}' cannot be loaded: {text}")
            failure.__cause__ = error
            self._give_up(self._error or failure)

    def _is_over(self) -> bool:
        """Return whether nothing more will be loaded, as the loader is closed or a stage failed."""
        return self._closed or self._error is not None

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise StageError(str(self._error)) from self._error.__cause__
        if self._closed:
            raise StageError(f"'{self._folder}' was closed")

    def _session(self, index: int) -> Any:
        """Return the session of a stage, waiting for it."""
        if len(self._sessions) == 1 and self._next == 0:
            self._load_here()
        self._events[index].wait()
        session = self._sessions[index]
        if session is None or self._error is not None:
            self._raise_if_failed()
        return session

    def _start_upgrade(self) -> None:
        """Begin to make stages anew for speed, once, when all are loaded; a thread too many ends at once."""
        if self._upgrade and not self._upgrade_begun and self._all_loaded.is_set() and not self._is_over():
            upgrader = threading.Thread(target=self._make_faster, name="splitload-upgrade", daemon=True)
            if not started(upgrader) and not self._upgrade_begun:
                self._upgrade = False

    def _make_faster(self) -> None:
        """Replace sessions by such with prepacked weights; a stage that fails keeps the one it has."""
        lane = -1
        with self._lock:
            if self._upgrade_begun or self._is_over():
                return
            self._upgrade_begun = True
            self._busy[lane] = threading.get_ident()
        try:
            for index, stage in enumerate(self.variant.stages):
                if self._closed:
                    break
                if stage.upgrade:
                    # a thread for each: the priority it lowers for its work cannot be raised again
                    worker = threading.Thread(target=self._upgrade_stage, args=(index, stage), daemon=True)
                    if started(worker):
                        worker.join()
            return_memory()
        finally:
            self._upgraded.set()
            self._leave(lane)

    def _upgrade_stage(self, index: int, stage: StageEntry) -> None:
        with contextlib.suppress(Exception):  # the stage answers as before
            session = self._open(stage, prepack=True, background=True)
            with self._lock:
                if not self._closed:
                    self._sessions[index] = session
