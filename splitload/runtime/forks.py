"""No fork, and no exit, while a thread of ours is inside the runtime making a session, where it holds locks.

A child has one thread, and a copy of every lock as it stood. The runtime takes locks of the process when it makes a
session (its tables of operators, its log), and none of them when it runs one. So a fork waits until the sessions being
made are made, and none is begun meanwhile. What a session has besides, its inference threads, stays with the parent: a
child never uses an inherited session, it makes its own.

This is what the first answer waits for before all else, so nothing is imported here that takes time: `_thread` is what
`threading` is made of.
"""

from __future__ import annotations

import _thread
import atexit
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_WAIT_S = 30.0  # then the fork goes on, and the child takes its chance
_STEP_S = 0.001
_gate = _thread.RLock()  # held by who forks; a signal's handler may fork where its own thread holds it
_inside: set[object] = set()  # identifiers of the threads that make a session, and what stands for one that begins


class making_session:
    """Runs a block that makes a session, in no moment when the process forks."""

    def __enter__(self) -> None:
        here = _thread.get_ident()
        self._is_outer = here not in _inside  # where only this thread adds or removes its own
        if self._is_outer:  # a block within one would wait for who forks, and that for this thread
            with _gate:
                _inside.add(here)

    def __exit__(self, *_: object) -> None:
        if self._is_outer:
            _inside.discard(_thread.get_ident())


def make_beside(work: Callable[[], None]) -> bool:
    """Do what makes a session, or what all share, on a thread of its own; the interpreter does not exit meanwhile.

    Returns when that thread runs, which would wait for Python's lock for as long as this one imports; False where the
    system has none left.

    Args:
        work: What is done; it must not raise.
    """
    begun, runs, done = object(), _thread.allocate_lock(), _thread.allocate_lock()
    decided = _thread.allocate_lock()  # taken by that thread when it begins, or by who gives it up before

    def on_thread() -> None:
        if not decided.acquire(blocking=False):
            return
        here = _thread.get_ident()
        try:
            _inside.add(here)  # with no gate: `begun` is inside already
            runs.release()
            work()
        finally:
            _inside.discard(here)
            _inside.discard(begun)
            done.release()

    def wait() -> None:
        import contextlib

        while begun in _inside:  # which it is not in a forked child
            with contextlib.suppress(KeyboardInterrupt, SystemExit):  # the process ends as it is, and cannot sooner
                done.acquire()

    runs.acquire()
    done.acquire()
    atexit.register(wait)
    try:
        with _gate:
            _inside.add(begun)
        _thread.start_new_thread(on_thread, ())
        runs.acquire()
    except BaseException as error:  # there is no thread left, or it is an interrupt
        if decided.acquire(blocking=False):
            _inside.discard(begun)
            if isinstance(error, RuntimeError):
                return False
        raise
    return True


def keep_for_good(value: object) -> None:
    """Have something never be freed, as far as this interpreter can; it may end whenever it likes."""
    try:
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
    except (ImportError, AttributeError):
        pass


def _before() -> None:
    _gate.acquire()
    deadline = time.perf_counter() + MAX_WAIT_S
    while _inside - {_thread.get_ident()} and time.perf_counter() < deadline:
        time.sleep(_STEP_S)


def _after_in_child() -> None:
    global _gate
    _gate = _thread.RLock()
    _inside.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=lambda: _gate.release(), after_in_child=_after_in_child)
