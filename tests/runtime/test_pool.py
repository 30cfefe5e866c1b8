"""LoadingPool: order, number of threads, idleness and shortage."""

from __future__ import annotations

import _thread
import functools
import gc
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator

import pytest

import splitload.runtime.pool
from splitload.runtime.pool import Latch, LoadingPool

WAIT_S = 60


class Jobs:
    """Numbered jobs that wait for their gate.

    Attributes:
        started: Numbers of the jobs, in the order they began.
        begun: Set when a job begins, by number.
        gates: A job ends when its gate is set.
        done: Set when a job has ended.
        threads: The identifier of the thread that ran each job, in the order they began.
    """

    def __init__(self, count: int, *, opened: bool = False) -> None:
        self.started: list[int] = []
        self.begun = [threading.Event() for _ in range(count)]
        self.gates = [threading.Event() for _ in range(count)]
        self.done = [threading.Event() for _ in range(count)]
        self.threads: list[int] = []
        if opened:
            self.release()

    def release(self) -> None:
        for gate in self.gates:
            gate.set()

    def job(self, number: int) -> Callable[[], None]:
        return functools.partial(self._run, number)

    def _run(self, number: int) -> None:
        self.started.append(number)
        self.threads.append(threading.get_ident())
        self.begun[number].set()
        self.gates[number].wait(WAIT_S)
        self.done[number].set()

    def submit(self, pool: LoadingPool, *numbers: int, at_least: int = 1) -> None:
        for number in numbers:
            assert pool.submit(self.job(number), at_least)

    def wait(self, *numbers: int) -> None:
        for number in numbers or range(len(self.done)):
            assert self.done[number].wait(WAIT_S)


def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds that no event tells of."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def nobody_looks_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is not woken waits for longer than any test."""
    monkeypatch.setattr(splitload.runtime.pool, "SIGNAL_S", 10 * WAIT_S)


def pool_of(size: int, idle_s: float = 10 * WAIT_S) -> LoadingPool:
    """A pool whose threads do not end during a test, unless it says so."""
    return LoadingPool(size, idle_s)


def test_a_thread_whose_start_is_interrupted_may_come_to_work(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, jobs = pool_of(1), Jobs(4, opened=True)
    real = _thread.start_new_thread

    def interrupted(work: Callable[[], None], arguments: tuple[()]) -> None:
        real(work, arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.submit(jobs.job(0))
    until(lambda: len(pool._threads) == 1)  # it was started all the same
    jobs.submit(pool, 1, 2, 3)
    jobs.wait(1, 2, 3)
    assert pool._threads == set(jobs.threads)


def test_a_thread_whose_start_is_interrupted_may_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, jobs = pool_of(1), Jobs(2, opened=True)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.submit(jobs.job(0))
    assert not pool._threads
    jobs.submit(pool, 1)
    jobs.wait(1)


def test_a_job_whose_error_cannot_be_reported_costs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("the hook is broken")

    def fails() -> None:
        raise ValueError

    monkeypatch.setattr(threading, "excepthook", broken)
    pool, jobs = pool_of(1, idle_s=0.001), Jobs(1, opened=True)
    assert pool.submit(fails)
    jobs.submit(pool, 0)
    jobs.wait(0)
    until(lambda: not pool._threads)


def test_jobs_run_in_the_order_they_came() -> None:
    pool, jobs = pool_of(1), Jobs(20)
    jobs.submit(pool, *range(20))
    jobs.release()
    jobs.wait()
    assert jobs.started == list(range(20))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_more_threads_than_the_size(size: int) -> None:
    pool, jobs = pool_of(size), Jobs(7)
    jobs.submit(pool, *range(7))
    for number in range(7):
        assert all(begun.wait(WAIT_S) for begun in jobs.begun[: number + size])
        assert len(jobs.started) == min(7, number + size)  # the others wait
        jobs.gates[number].set()
        jobs.wait(number)
    assert sorted(jobs.started[:size]) == list(range(size))
    assert jobs.started[size:] == list(range(size, 7))
    assert len(set(jobs.threads)) == size
    assert not set(jobs.threads) & {thread.ident for thread in threading.enumerate()}  # nobody waits for them to end


def test_it_grows_for_a_job_that_asks_for_more() -> None:
    pool, jobs = pool_of(1), Jobs(5)
    jobs.submit(pool, 0, 1, 2, at_least=3)
    assert all(begun.wait(WAIT_S) for begun in jobs.begun[:3])  # although none has ended
    jobs.submit(pool, 3)
    jobs.submit(pool, 4, at_least=2)
    assert sorted(jobs.started) == [0, 1, 2]
    jobs.release()
    jobs.wait()
    assert len(set(jobs.threads)) == 3


def test_a_size_above_what_a_job_asks_for_stays() -> None:
    pool, jobs = pool_of(3), Jobs(3)
    jobs.submit(pool, 0, 1, 2, at_least=1)
    assert all(begun.wait(WAIT_S) for begun in jobs.begun)
    jobs.release()
    jobs.wait()


def test_an_idle_thread_is_taken_before_a_new_one() -> None:
    pool, jobs = pool_of(4), Jobs(5, opened=True)
    for number in range(5):
        jobs.submit(pool, number)
        jobs.wait(number)
        until(lambda: len(pool._bells) == 1)
    assert len(set(jobs.threads)) == 1


def test_two_jobs_at_once_are_not_given_to_one_idle_thread() -> None:
    pool, jobs = pool_of(2), Jobs(3)
    jobs.gates[0].set()
    jobs.submit(pool, 0)
    jobs.wait(0)
    until(lambda: len(pool._bells) == 1)
    jobs.submit(pool, 1, 2)
    assert jobs.begun[1].wait(WAIT_S)
    assert jobs.begun[2].wait(WAIT_S)  # although neither has ended
    jobs.release()
    jobs.wait()


def test_threads_end_when_idle_and_come_back() -> None:
    pool, jobs = pool_of(3, idle_s=0.001), Jobs(6)
    jobs.submit(pool, 0, 1, 2)
    assert all(begun.wait(WAIT_S) for begun in jobs.begun[:3])
    first = set(jobs.threads)
    assert first <= set(sys._current_frames())
    jobs.release()
    jobs.wait(0, 1, 2)
    until(lambda: not first & set(sys._current_frames()))
    assert (len(pool._threads), len(pool._bells), len(pool._jobs)) == (0, 0, 0)
    jobs.submit(pool, 3, 4, 5)
    jobs.wait()


@pytest.mark.parametrize("idle_s", [0, 0.0001])
def test_no_job_is_lost_to_a_thread_that_ends(idle_s: float) -> None:
    pool, jobs = pool_of(2, idle_s), Jobs(400, opened=True)
    for number in range(400):
        jobs.submit(pool, number)
        if number % 3:
            jobs.wait(number)
    jobs.wait()
    assert sorted(jobs.started) == list(range(400))
    until(lambda: not pool._threads)
    assert not pool._bells


def test_jobs_from_many_threads() -> None:
    pool, jobs = pool_of(3), Jobs(200, opened=True)
    barrier = threading.Barrier(8)

    def hand_in(start: int) -> None:
        barrier.wait(WAIT_S)
        jobs.submit(pool, *range(start, 200, 8))

    callers = [threading.Thread(target=hand_in, args=(start,)) for start in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(WAIT_S)
    jobs.wait()
    assert sorted(jobs.started) == list(range(200))
    assert len(set(jobs.threads)) <= 3


def test_an_idle_thread_holds_nothing_of_its_last_job() -> None:
    class Big:
        def work(self) -> None:
            done.set()

    pool, done, big = pool_of(1), threading.Event(), Big()
    gone = weakref.ref(big)
    assert pool.submit(big.work)
    assert done.wait(WAIT_S)
    del big
    until(lambda: len(pool._bells) == 1)
    gc.collect()
    assert gone() is None


@pytest.fixture
def shortage(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While the event is set, the system has no thread left."""
    real, none_left = _thread.start_new_thread, threading.Event()

    def start(work: Callable[[], None], arguments: tuple[()]) -> int:
        if none_left.is_set():
            raise RuntimeError("can't start new thread")
        return real(work, arguments)

    monkeypatch.setattr(_thread, "start_new_thread", start)
    yield none_left
    none_left.clear()


def test_without_any_thread_a_job_is_refused_and_never_run(shortage: threading.Event) -> None:
    pool, jobs = pool_of(2), Jobs(4, opened=True)
    shortage.set()
    assert not pool.submit(jobs.job(0))
    assert not pool.submit(jobs.job(1), 5)
    shortage.clear()
    jobs.submit(pool, 2, 3)
    jobs.wait(2, 3)
    assert sorted(jobs.started) == [2, 3]


def test_with_few_threads_left_those_that_there_are_do_it(shortage: threading.Event) -> None:
    pool, jobs = pool_of(4), Jobs(5)
    jobs.submit(pool, 0)
    assert jobs.begun[0].wait(WAIT_S)
    shortage.set()
    jobs.submit(pool, 1, 2, 3, at_least=6)
    assert jobs.started == [0]
    jobs.gates[0].set()
    assert jobs.begun[1].wait(WAIT_S)
    shortage.clear()
    jobs.submit(pool, 4)  # there are threads again: one for this, which takes the job that is next
    assert jobs.begun[2].wait(WAIT_S)
    jobs.release()
    jobs.wait()
    assert jobs.started[:3] == [0, 1, 2]
    assert len(set(jobs.threads)) == 2


def test_what_traces_threads_sees_jobs() -> None:
    pool, seen = pool_of(1, idle_s=0.001), []

    def traced() -> None:
        seen.append("ran")

    threading.settrace(lambda frame, *_: seen.append(frame.f_code.co_name) if frame.f_code is traced.__code__ else None)
    try:
        assert pool.submit(traced)
        until(lambda: "ran" in seen)
    finally:
        threading.settrace(None)  # type: ignore[arg-type]
    assert seen == ["traced", "ran"]


def test_an_error_is_reported_without_a_thread_that_stays_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[threading.ExceptHookArgs] = []

    def fails() -> None:
        raise ValueError("told")

    monkeypatch.setattr(threading, "excepthook", told.append)
    before = threading.enumerate()
    assert pool_of(1, idle_s=0.001).submit(fails)
    until(lambda: bool(told))
    assert (told[0].exc_type, str(told[0].exc_value), told[0].thread) == (ValueError, "told", None)
    assert threading.enumerate() == before


def test_a_thread_that_begins_while_threading_is_being_imported_works(monkeypatch: pytest.MonkeyPatch) -> None:
    done = Latch()
    pool = LoadingPool(1, idle_s=0.05)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "threading", types.ModuleType("threading"))  # of which nothing was run yet
        assert pool.submit(done.set)
        assert done.wait(10)
