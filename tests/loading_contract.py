"""What every client of `OrderedLoading` keeps to, and the fakes that order its loads: nothing is timed."""

from __future__ import annotations

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest
from forked import does_in_child

from splitload.base.errors import StageError
from splitload.runtime.pool import LoadingPool

WAIT_S = 60


class HandPool:
    """A pool whose jobs run when the test says so, on the thread that says it.

    Attributes:
        jobs: Those that have not run.
        interrupts_at: The number of the job that a Ctrl-C keeps from being handed in.
    """

    def __init__(self, interrupts_at: int | None = None) -> None:
        self.jobs: deque[Callable[[], None]] = deque()
        self.interrupts_at = interrupts_at
        self._given = 0

    def submit(self, job: Callable[[], None], at_least: int = 1) -> bool:
        if self._given == self.interrupts_at:
            raise KeyboardInterrupt
        self._given += 1
        self.jobs.append(job)
        return True

    def run(self) -> None:
        self.jobs.popleft()()

    def run_all(self) -> None:
        while self.jobs:
            self.run()


class Stages:
    """What happens when a stage is loaded, before it really is.

    Attributes:
        order: Stages, in the order in which their loads began.
        then: What else happens, by stage; it may raise.
    """

    def __init__(self) -> None:
        self.order: list[int] = []
        self.then: dict[int, Callable[[], None]] = {}

    def __call__(self, index: int) -> None:
        self.order.append(index)
        self.then.get(index, lambda: None)()

    def fail(self, index: int, error: BaseException) -> None:
        def raises() -> None:
            raise error

        self.then[index] = raises


class Model(ABC):
    """A model of four stages.

    Attributes:
        owner: The client that loads it.
    """

    owner: Any

    @abstractmethod
    def use(self) -> None:
        """Infer through all stages, and check the answer."""

    @abstractmethod
    def wait(self, timeout: float) -> bool:
        """Wait until all stages are loaded."""

    @abstractmethod
    def close(self) -> None:
        """Load no more, as when the process ends."""


Open = Callable[[Any, Stages, int], Model]  # with a pool, what happens to the stages, and a number of threads


class LoadingContract:
    """Tests of a client, whose fixture `load` opens a model."""

    @pytest.fixture
    def load(self) -> Open:
        raise NotImplementedError

    def test_stages_are_loaded_in_order_one_a_turn(self, load: Open) -> None:
        pool, stages = HandPool(), Stages()
        model = load(pool, stages, 2)
        assert len(pool.jobs) == 2
        for turn in range(4):
            assert stages.order == list(range(turn))
            assert not model.wait(0)
            pool.run()
        pool.run_all()
        assert stages.order == [0, 1, 2, 3]
        assert model.wait(0)
        model.use()

    def test_the_first_failure_cancels_the_rest_and_is_raised(self, load: Open) -> None:
        pool, stages, error = HandPool(), Stages(), OSError("no\nluck")
        stages.fail(1, error)
        model = load(pool, stages, 1)
        pool.run_all()
        assert stages.order == [0, 1]
        for call in (model.use, lambda: model.wait(WAIT_S), model.use):
            with pytest.raises(StageError, match=r"^stage 2 of '.*' cannot be loaded: no luck$") as caught:
                call()
            assert caught.value.__cause__ is error

    def test_a_later_failure_does_not_take_its_place(self, load: Open) -> None:
        pool, stages = HandPool(), Stages()

        def fails_later() -> None:
            pool.run()  # as on another thread: stage 3 fails
            raise OSError("second")

        stages.then[1] = fails_later
        stages.fail(2, OSError("first"))
        model = load(pool, stages, 2)
        pool.run_all()
        with pytest.raises(StageError, match=r"stage 3 of .* first"):
            model.use()
        assert stages.order == [0, 1, 2]

    def test_an_error_without_words_is_named(self, load: Open) -> None:
        pool, stages = HandPool(), Stages()
        stages.fail(0, MemoryError())
        model = load(pool, stages, 1)
        pool.run_all()
        with pytest.raises(StageError, match=r"stage 1 of .*: MemoryError"):
            model.use()

    def test_whoever_waits_for_what_exits_the_thread_is_told(self, load: Open) -> None:
        pool, stages = HandPool(), Stages()
        stages.fail(0, SystemExit("3"))
        model = load(pool, stages, 1)
        with pytest.raises(SystemExit):
            pool.run_all()
        with pytest.raises(StageError, match=r"stage 1 of .*: 3"):
            model.use()

    def test_closing_while_a_stage_loads_waits_for_it_and_loads_no_more(self, load: Open) -> None:
        pool, stages, begun, gate = HandPool(), Stages(), threading.Event(), threading.Event()
        stages.then[0] = lambda: (begun.set(), gate.wait(WAIT_S))[0]
        model = load(pool, stages, 2)
        with ThreadPoolExecutor(3) as threads:
            loads = threads.submit(pool.run)
            assert begun.wait(WAIT_S)
            waits = threading.Event()
            uses = threads.submit(lambda: (waits.set(), model.use()))
            assert waits.wait(WAIT_S)
            closes = threads.submit(model.close)
            with pytest.raises(StageError):
                uses.result(WAIT_S)  # although the stage still loads
            assert not closes.done()
            gate.set()
            loads.result(WAIT_S)
            closes.result(WAIT_S)
        pool.run_all()
        assert stages.order == [0]
        assert not model.owner._loading._inside
        with pytest.raises(StageError):
            model.wait(WAIT_S)

    def test_closing_on_the_thread_that_loads_does_not_wait_for_itself(self, load: Open) -> None:
        pool, stages = HandPool(), Stages()
        stages.then[1] = lambda: model.close()
        model = load(pool, stages, 1)
        pool.run_all()
        assert stages.order == [0, 1]
        with pytest.raises(StageError):
            model.wait(WAIT_S)

    @pytest.mark.parametrize("number", [0, 1])
    def test_an_interrupt_while_it_begins_leaves_nothing_to_load(self, load: Open, number: int) -> None:
        pool, stages = HandPool(interrupts_at=number), Stages()
        with pytest.raises(KeyboardInterrupt):
            load(pool, stages, 2)
        assert len(pool.jobs) == number
        pool.run_all()
        assert stages.order == []

    def test_an_interrupt_while_a_stage_is_waited_for_breaks_nothing(self, load: Open) -> None:
        pool, stages = HandPool(), Stages()
        model = load(pool, stages, 1)

        def press(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, press)
        try:
            for call in (model.use, lambda: model.wait(WAIT_S)):
                with pytest.raises(KeyboardInterrupt):
                    signal.setitimer(signal.ITIMER_REAL, 0.05)
                    call()
        finally:
            signal.signal(signal.SIGALRM, before)
        pool.run_all()
        assert model.wait(0)
        model.use()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_forked_child_answers_or_is_told_and_the_parent_goes_on(self, load: Open) -> None:
        stages, begun, gate = Stages(), threading.Event(), threading.Event()
        stages.then[1] = lambda: (begun.set(), gate.wait(WAIT_S))[0]
        model = load(LoadingPool(2), stages, 2)
        assert begun.wait(WAIT_S)
        before = model.owner._loading
        before.lock.acquire()  # as if a thread held it that stays with the parent

        def work() -> None:
            stages.then.clear()
            assert model.owner._loading is not before
            try:
                model.use()
            except StageError as error:
                assert "forked" in str(error)

        assert does_in_child(work)
        before.lock.release()
        gate.set()
        assert model.wait(WAIT_S)
        model.use()

    def test_what_a_thread_that_forks_had_to_load_comes_to_nothing(self, load: Open) -> None:
        pool, stages = HandPool(), Stages()
        stages.then[1] = lambda: model.owner._inherit()
        model = load(pool, stages, 1)
        pool.run_all()
        assert stages.order == [0, 1]
