"""No fork while a thread of ours is inside the runtime making a session, where it holds locks that a child never gets.

A child has one thread, and a copy of every lock as it stood. The runtime takes locks of the process when it makes a
session (its tables of operators, its log), and none of them when it runs one. So a fork waits until the sessions being
made are made, and none is begun meanwhile. What a session has besides, its inference threads, stays with the parent: a
child never uses an inherited session, it makes its own.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

MAX_WAIT_S = 30.0  # then the fork goes on, and the child takes its chance
_STEP_S = 0.001
_gate = threading.RLock()  # held by who forks; a signal's handler may fork where its own thread holds it
_inside: set[int] = set()  # identifiers of the threads that make a session


@contextlib.contextmanager
def making_session() -> Iterator[None]:
    """Run a block that makes a session, in no moment when the process forks."""
    here = threading.get_ident()
    with _gate:
        _inside.add(here)
    try:
        yield
    finally:
        _inside.discard(here)


def _before() -> None:
    _gate.acquire()
    deadline = time.perf_counter() + MAX_WAIT_S
    while _inside - {threading.get_ident()} and time.perf_counter() < deadline:
        time.sleep(_STEP_S)


def _after_in_child() -> None:
    global _gate
    _gate = threading.RLock()
    _inside.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=lambda: _gate.release(), after_in_child=_after_in_child)
