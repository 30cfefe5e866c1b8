"""The threads that load: one pool for all models of the process, sized once by its processors.

Whoever loads a model may be interrupted at any place by a signal, and go on. `threading.Event` and `Condition` may keep
a lock of theirs then, on which everyone waits for ever, and `Thread.join` takes a thread for ended that is not. Who
waits here needs no more than a plain lock, which `with` takes and gives back in any case; a thread whose start is
interrupted may be lost, and is not counted on.

The first answer waits for what is imported here: `_thread` and `_weakref` are what `threading` and `weakref` are made
of, which take a twentieth of the time in which a small model answers.
"""

from __future__ import annotations

import _thread
import atexit
import os
import sys
import time
from _weakref import ref

from splitload.base.machine import available_threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from typing import Any

IDLE_S = 5.0
SIGNAL_S = 0.5


class Latch:
    """Something that has happened or not; an event that a signal cannot break, and that cannot be cleared."""

    __slots__ = ("_is_set", "_wake")

    def __init__(self) -> None:
        self._is_set = False
        self._wake = _thread.allocate_lock()
        self._wake.acquire()

    def is_set(self) -> bool:
        """Return whether it has happened."""
        return self._is_set

    def set(self) -> None:
        """Have it happen, once or again, and wake everyone who waits."""
        self._is_set = True
        self._pass_on()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it happens, `timeout` seconds at most, and return whether it has.

        Looks up now and then: a signal that comes just before Python begins to wait, or to another thread, does not
        end the wait, nor does one that came to someone about to pass the word on wake the others.
        """
        deadline = float("inf") if timeout is None else time.perf_counter() + timeout
        while not self._is_set:
            left_s = deadline - time.perf_counter()
            if not left_s > 0:  # nor is NaN
                return False
            if self._wake.acquire(timeout=min(SIGNAL_S, left_s)):
                self._pass_on()
        return True

    def _pass_on(self) -> None:
        try:
            self._wake.release()
        except RuntimeError:  # someone else did meanwhile
            pass


class LoadingPool:
    """Runs jobs in the order they come, on daemon threads that end when there is nothing to do.

    Loaders hand in one stage at a time, so that models that load at once take turns. In a forked child it is as new:
    the parent's threads stayed there, and with them what they load.

    Args:
        size: The most threads, unless a job asks for more; None for as many as the process has processors.
        idle_s: How long a thread waits for the next job before it ends.
    """

    def __init__(self, size: int | None = None, idle_s: float = IDLE_S) -> None:
        self._given_size = size
        self._idle_s = idle_s
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        """Have no jobs and no threads."""
        self._size = self._given_size or available_threads()
        self._lock = _thread.allocate_lock()
        self._jobs: list[Callable[[], None]] = []
        self._bells: list[Latch] = []  # of threads with nothing to do
        self._threads: set[int] = set()  # their identifiers

    def submit(self, job: Callable[[], None], at_least: int = 1) -> bool:
        """Run `job` on a thread of the pool; what it raises goes to `threading.excepthook`.

        Args:
            job: What to do.
            at_least: Threads that the pool may have for it, if it is smaller.

        Returns:
            False if the system has no thread left to run it, and it never will be.
        """
        with self._lock:
            if not self._bells and len(self._threads) < max(self._size, at_least):
                self._grow()
            if not self._threads:
                return False
            self._jobs.append(job)
            if self._bells:
                self._bells.pop().set()
            return True

    def _grow(self) -> None:
        """Add a thread, if the system has one left; one whose start is interrupted adds itself, if it comes to work."""
        try:
            self._threads.add(_thread.start_new_thread(self._work, ()))
        except RuntimeError:
            pass

    def _work(self) -> None:
        """Run jobs until none came for a while; the body of a thread."""
        here = _thread.get_ident()
        module: Any = sys.modules.get("threading")
        if hasattr(module, "gettrace") and hasattr(module, "getprofile"):  # another thread may be importing it just now
            sys.settrace(module.gettrace())  # as it does for threads of its own
            sys.setprofile(module.getprofile())
        while True:
            job, bell = None, None
            with self._lock:
                self._threads.add(here)
                if self._jobs:
                    job = self._jobs.pop(0)
                else:
                    bell = Latch()
                    self._bells.append(bell)
            if job is not None:
                try:
                    job()
                except BaseException as error:  # the pool outlives its jobs
                    report(error)
                del job  # what it holds must not live until the next one comes
            elif bell is not None and not bell.wait(self._idle_s):
                with self._lock:
                    if bell in self._bells:
                        self._bells.remove(bell)
                        if not self._jobs:
                            self._threads.discard(here)
                            return


class Living:
    """Those of the objects that were added that still live; it keeps none of them alive."""

    def __init__(self) -> None:
        self._refs: dict[int, ref[Any]] = {}

    def add(self, one: Any) -> None:
        """Add an object."""
        key = id(one)  # of no other one before it is gone
        self._refs[key] = ref(one, lambda _: self._refs.pop(key, None))

    def __iter__(self) -> Iterator[Any]:
        return iter([one for each in list(self._refs.values()) if (one := each()) is not None])


_pools = Living()


_awaited: list[Latch] = []  # for which the interpreter waits when it exits


def _reset_all() -> None:
    _awaited.clear()
    for pool in _pools:
        pool._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)

SHARED = LoadingPool()  # of all models of the process


def report(error: BaseException) -> None:
    """Give an error that nobody waits for to `threading.excepthook`, whatever that does."""
    try:
        import threading

        here = _thread.get_ident()  # not `current_thread`, which has a dummy stay behind for a thread of the pool
        thread = next((each for each in threading.enumerate() if each.ident == here), None)
        threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, thread)))
    except BaseException:  # noqa: S110 - there is nobody left to tell
        pass


def started(thread: threading.Thread) -> bool:
    """Start a thread; return whether the system had one left."""
    try:
        thread.start()
    except RuntimeError as error:
        if error.__context__ is not None:  # a signal broke the wait for the thread to begin, and with it a lock
            raise error.__context__ from None
        return False
    return True


def dropping(work: Callable[[], None]) -> tuple[Callable[[], None], Latch]:
    """Return what a thread does to work and drop what that holds, and what is set then.

    Args:
        work: What is done.
    """
    ended, held = Latch(), [work]

    def work_and_drop() -> None:
        try:
            held.pop()()
        finally:
            ended.set()

    return work_and_drop, ended


def await_at_exit(ended: Latch) -> None:
    """Have the interpreter wait for a daemon thread when it exits, once all loadings are closed.

    What such a thread is the last to hold, a session perhaps, is freed when its work is done already.

    Args:
        ended: Set when it has dropped that, see `dropping`.
    """
    _awaited[:] = [each for each in _awaited if not each.is_set()]
    _awaited.append(ended)


@atexit.register  # before that of `ordered`, which closes the loadings, and so called after it
def _await_all() -> None:
    for ended in _awaited:
        while not ended.is_set():
            try:
                ended.wait()
            except (KeyboardInterrupt, SystemExit):  # the process ends as it is, and cannot sooner
                pass
