"""Loads numbered stages in order on a pool of threads, and wakes whoever waits for one: the one loading of all models.

It knows neither files nor sessions. Whose stages they are says how one is loaded, and what is done once it is there.

An `OrderedLoading` is used once. Who has to begin anew, as in a forked child, makes another one and gives this one up:
tasks of it that come late find nothing left to load, and change nothing of the new one.

Whoever loads may be interrupted at any place (see pool.py). What is left then is closed, or another thread loads it.
"""

from __future__ import annotations

import _thread
import atexit
import os
import time

from splitload.base.errors import StageError
from splitload.runtime.pool import Latch, Living

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from splitload.base.regular import StrPath

    Load = Callable[[int, int], Any]
    After = Callable[[int, int], None]
    Loaded = tuple[int, float, float]  # lane, start and end of a load, in seconds from the load call

    class Pool(Protocol):
        """What runs jobs on threads: a `LoadingPool`, or what stands in for one."""

        def submit(self, job: Callable[[], None], at_least: int = 1) -> bool:
            """See `LoadingPool.submit`."""

    class Owner(Protocol):
        """Whose stages are loaded."""

        def _let_go(self) -> None:
            """Return when no thread is inside the runtime for it; called before the interpreter exits."""

        def _inherit(self) -> None:
            """Leave to the parent, in a forked child, what its threads load."""


class OrderedLoading:
    """The stages of one model on their way.

    Stages are handed out in order, one a turn, so that models that load at once take turns. The first stage that fails
    cancels the rest, and its error is what is raised.

    Attributes:
        values: What was loaded, by stage; None before.
        loads: When that was, by stage.
        all_loaded: Set when every stage is loaded; like all latches also when it is given up.
        error: The first failure, or None.
        is_closed: Whether it was closed.
        threads: How many stages load at a time.
        lock: Held for each change.

    Args:
        folder: The bundle, as errors name it.
        num_stages: At least 1.
        pool: What loads.
        hand_over_s: How long the pool leaves a stage that is the only one to who asks for it, see `load_here`; None
            where only the pool loads.
        lets_go: Whether what was loaded goes once a stage fails, as nobody has a use for it without the others. The
            error makes a cycle with this by its traceback: all that this holds stays until the garbage is collected,
            perhaps in a forked child, where a session that is freed waits for its threads, which the parent has.
        given_up: What else is done when it is given up, with the lock held; perhaps more than once.
    """

    def __init__(
        self,
        folder: StrPath,
        num_stages: int,
        pool: Pool,
        *,
        hand_over_s: float | None = None,
        lets_go: bool = False,
        given_up: Sequence[Callable[[], None]] = (),
    ) -> None:
        self.values: list[Any] = [None] * num_stages
        self.loads: dict[int, Loaded] = {}
        self.error: StageError | None = None
        self.is_closed = False
        self.threads = 0
        self.lock = _thread.allocate_lock()
        self._folder, self._pool, self._given_up = folder, pool, given_up
        self._hand_over_s = hand_over_s if num_stages == 1 else None
        self._lets_go = lets_go
        self._next = 0
        self._start_s = time.perf_counter()
        self._latches = [Latch() for _ in range(num_stages)]
        self._further: list[Latch] = []
        self._asked_for, self._left = Latch(), Latch()
        self._inside: set[int] = set()  # identifiers of the threads inside the runtime
        self.all_loaded = self.latch()

    def latch(self) -> Latch:
        """Return a latch that whoever asks for it sets, unless this is given up before."""
        made = Latch()
        self._further.append(made)
        return made

    def start(self, threads: int, load: Load, after: After, start_s: float | None = None) -> None:
        """Have the pool load the stages.

        Args:
            threads: How many at a time, at most as many as there are stages.
            load: Loads a stage: called with its number and that of the lane, below `threads`, that it is loaded in.
            after: Called from the thread that has loaded a stage, with its number and how many were loaded with it.
            start_s: When the load call was, by `time.perf_counter`; None for now.

        Raises:
            StageError: If the system has no thread left.
        """
        self._start_s = time.perf_counter() if start_s is None else start_s
        turn = self._turn if self._hand_over_s is None else self._late_turn
        try:
            for lane in range(threads):
                if self._pool.submit(_job(turn, load, after, lane), threads):
                    self.threads += 1
        except BaseException:  # an interrupt: nobody will ask for what was begun
            self.close()
            raise
        if not self.threads:
            error = StageError(f"cannot load '{self._folder}': the system has no thread left to load it with")
            self.give_up(error)
            raise error

    def load_here(self, load: Load, after: After) -> None:
        """Load the only stage on this thread, if it is handed over and no other has begun to; see `start`.

        On the thread that goes on to run it a session is made faster than on another one: by 3 ms of 18, on a machine
        of two processors.
        """
        if self._hand_over_s is None or self._next:
            return
        self._asked_for.set()
        try:
            index = self._hand_out()
            if index is not None:
                self._load(index, load, after, 0)
        except BaseException:  # an interrupt, anywhere: what was begun is finished, here or by someone else
            self._leave()
            with self.lock:
                again = not (self.loads or self._inside or self.is_over())
                if again:
                    self._next = 0
                elif self.loads:
                    self._tell(0)
                elif self.is_over():
                    self._give_up(self.error)
            if again and not self._pool.submit(_job(self._turn, load, after, 0)):
                self._fail(0, StageError("it was interrupted, and the system has no thread left to load it with"))
            raise

    def take(self, index: int) -> Any:
        """Wait for a stage, and return what was loaded; None if it was given up before, or all was let go of."""
        self._latches[index].wait()
        return self.values[index]

    def replace(self, index: int, value: Any) -> None:
        """Put another value in the place of one that was loaded, unless all were let go of."""
        with self.lock:
            if not (self.is_closed or self._has_let_go()):
                self.values[index] = value

    def inside(self) -> _Inside:
        """Return a block inside the runtime, for whose end `stop` and `close` wait.

        Raises:
            StageError: When it begins, if this is over.
        """
        return _Inside(self)

    def is_inside(self) -> bool:
        """Return whether this thread is inside the runtime."""
        return _thread.get_ident() in self._inside

    @property
    def is_ready(self) -> bool:
        """Whether every stage is loaded."""
        return len(self.loads) == len(self.values) and not self.is_closed

    def is_over(self) -> bool:
        """Return whether nothing more will be loaded, as it was closed or a stage failed."""
        return self.is_closed or self.error is not None

    def check(self) -> None:
        """Raise what ended it, if anything did.

        Raises:
            StageError: The first failure; else that it was closed.
        """
        if self.error is not None:
            raise StageError(str(self.error)) from self.error.__cause__
        if self.is_closed:
            raise StageError(f"'{self._folder}' was closed")

    def give_up(self, error: StageError | None = None) -> None:
        """Hand out no more stages, and wake everyone who waits.

        Args:
            error: What they are told, unless there was another one before; None for that it was closed.
        """
        with self.lock:
            self._give_up(error)

    def stop(self, error: StageError | None = None) -> None:
        """Give up, and return when no thread is inside the runtime, unless this one is."""
        try:
            with self.lock:
                self._give_up(error)
                # `after` may stop it: two threads that load would wait for each other
                wait = self._inside and _thread.get_ident() not in self._inside
            if wait:
                self._left.wait()
        except BaseException:  # an interrupt: those who wait for a stage must know
            self.give_up(error)
            raise

    def close(self) -> None:
        """Stop, and let go of what was loaded."""
        self.stop()
        with self.lock:
            self.values = [None] * len(self.values)

    def heir(self, given_up: Sequence[Callable[[], None]] = ()) -> OrderedLoading:
        """Return what takes its place in a forked child: nothing is loaded there, and what is over stays over.

        Threads that load stayed with the parent, perhaps with the lock. The thread that forked may come back to this
        one, and finds it closed.
        """
        heir: OrderedLoading = OrderedLoading(
            self._folder, len(self.values), self._pool,
            hand_over_s=self._hand_over_s, lets_go=self._lets_go, given_up=given_up,
        )  # fmt: skip
        if self.is_over():
            heir.give_up(self.error)
            heir.is_closed = self.is_closed
        self.lock = _thread.allocate_lock()
        self._inside = set()
        self.give_up()
        return heir

    def _let_go(self) -> None:
        """See `Owner`; for one that is enlisted itself, as threads may outlive its owner."""
        self.close()

    def _inherit(self) -> None:
        """See `Owner`: it is the owner who asks for an heir."""

    def _late_turn(self, load: Load, after: After, lane: int) -> None:
        """Load the only stage, unless `load_here` does within a moment, which saves the start of a thread."""
        self._asked_for.wait(self._hand_over_s)
        self._turn(load, after, lane)

    def _turn(self, load: Load, after: After, lane: int) -> None:
        """Load the next stage, then make room for other models; one turn on a thread of the pool."""
        index = self._hand_out()
        if index is None:
            return
        try:
            self._load(index, load, after, lane)
        except BaseException as error:  # not even SystemExit: others wait for this thread
            self._fail(index, error)
            raise
        if self._next < len(self.values):
            self._pool.submit(_job(self._turn, load, after, lane), self.threads)

    def _hand_out(self) -> int | None:
        """Return the next stage, which this thread has to load now; None if there is none."""
        with self.lock:
            index = self._next
            if index >= len(self.values):
                return None
            self._go_inside()
            self._next = index + 1
        return index

    def _load(self, index: int, load: Load, after: After, lane: int) -> None:
        """Load a stage that was handed out, and tell those who wait for it."""
        try:
            start_s = time.perf_counter()
            value = load(index, lane)
            end_s = time.perf_counter()
            with self.lock:
                if not (self.is_closed or self._has_let_go()):
                    self.values[index] = value
                # before this thread has left, and the process may end; an error of `after` would keep it as well
                del value
                if self.is_closed:
                    return
                self.loads[index] = (lane, start_s - self._start_s, end_s - self._start_s)
                loaded = len(self.loads)
                self._tell(index)
            after(index, loaded)
        except Exception as error:  # the runtimes have no common root for their errors
            self._fail(index, error)
        finally:
            self._leave()

    def _tell(self, index: int) -> None:
        """Wake who waits for a stage that is loaded; the caller holds the lock."""
        if len(self.loads) == len(self.values):
            self.all_loaded.set()
        self._latches[index].set()

    def _fail(self, index: int, error: BaseException) -> None:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        failure = StageError(f"stage {index + 1} of '{self._folder}' cannot be loaded: {text}")
        failure.__cause__ = error
        self.give_up(failure)

    def _give_up(self, error: StageError | None) -> None:
        """See `give_up`; the caller holds the lock. An interrupt may have it begin again."""
        if error is None:
            self._next, self.is_closed = len(self.values), True
        else:
            self._next, self.error = len(self.values), self.error or error
            if self._lets_go:
                self.values = [None] * len(self.values)
        for latch in (*self._latches, *self._further):
            latch.set()
        for each in self._given_up:
            each()

    def _has_let_go(self) -> bool:
        """Return whether what was loaded went, as a stage failed."""
        return self._lets_go and self.error is not None

    def _go_inside(self) -> None:
        """Note that this thread is inside the runtime, where no process may end; the caller holds the lock."""
        _entered.add(self)
        self._inside.add(_thread.get_ident())

    def _leave(self) -> None:
        """Note that this thread is no longer inside the runtime."""
        with self.lock:
            self._inside.discard(_thread.get_ident())
            if not self._inside:
                _entered.discard(self)
            if self.is_over() and not self._inside:
                self._left.set()


class _Inside:
    def __init__(self, loading: OrderedLoading) -> None:
        self._loading = loading

    def __enter__(self) -> None:
        with self._loading.lock:
            self._loading.check()
            self._loading._go_inside()

    def __exit__(self, *_: object) -> None:
        self._loading._leave()


def _job(turn: Callable[[Load, After, int], None], load: Load, after: After, lane: int) -> Callable[[], None]:
    return lambda: turn(load, after, lane)


_owners = Living()
_entered: set[OrderedLoading] = set()  # with threads inside the runtime, though their owner may be gone


def enlist(owner: Owner) -> None:
    """Have an owner of a loading told when the interpreter exits or the process has forked."""
    _owners.add(owner)


@atexit.register
def _let_all_go() -> None:
    """Let no thread be inside the runtime when the interpreter goes away: that would abort the process."""
    for let_go in [*(owner._let_go for owner in _owners), *(loading.close for loading in list(_entered))]:
        while True:
            try:
                let_go()
                break
            except (KeyboardInterrupt, SystemExit):  # the process ends as it is, and cannot sooner
                pass


def _inherit_all() -> None:
    _entered.clear()
    for owner in _owners:
        owner._inherit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit_all)
