"""The threads that load: one pool for all models of the process, sized once by its processors."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

IDLE_S = 5.0
SIGNAL_S = 0.5


class LoadingPool:
    """Runs jobs in the order they come, on daemon threads that end when there is nothing to do.

    Loaders hand in one stage at a time, so that models that load at once take turns.

    Args:
        size: The most threads, unless a job asks for more.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._jobs: deque[Callable[[], None]] = deque()
        self._ready = threading.Condition()
        self._threads = 0
        self._idle = 0

    def submit(self, job: Callable[[], None], at_least: int = 1) -> bool:
        """Run `job` on a thread of the pool; what it raises goes to `threading.excepthook`.

        Args:
            job: What to do.
            at_least: Threads that the pool may have for it, if it is smaller.

        Returns:
            False if the system has no thread left to run it, and it never will be.
        """
        with self._ready:
            self._jobs.append(job)
            if self._idle >= len(self._jobs):
                self._ready.notify()
                return True
            if self._threads < max(self._size, at_least):
                self._threads += 1
                if not started(threading.Thread(target=self._work, name="splitload-load", daemon=True)):
                    self._threads -= 1
                    if self._threads == 0:  # otherwise those that there are will do
                        self._jobs.pop()
                        return False
            return True

    def _work(self) -> None:
        """Run jobs until none came for a while; the body of a thread."""
        while True:
            with self._ready:
                self._idle += 1
                while not self._jobs:
                    if not self._ready.wait(IDLE_S) and not self._jobs:
                        self._idle -= 1
                        self._threads -= 1
                        return
                self._idle -= 1
                job = self._jobs.popleft()
            try:
                job()
            except BaseException as error:  # the pool outlives its jobs
                thread = threading.current_thread()
                threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, thread)))
            del job  # what it holds must not live until the next one comes


def started(thread: threading.Thread) -> bool:
    """Start a thread; return whether the system had one left."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


def reached(event: threading.Event, timeout: float | None = None) -> bool:
    """Wait for an event, `timeout` seconds at most, and look up now and then; return whether it is set.

    A signal that comes just before Python begins to wait, or to another thread, does not end the wait.
    """
    deadline = float("inf") if timeout is None else time.perf_counter() + timeout
    while not event.wait(max(0.0, min(SIGNAL_S, deadline - time.perf_counter()))):
        if not time.perf_counter() < deadline:  # nor is anything before a deadline that is no number
            return False
    return True
