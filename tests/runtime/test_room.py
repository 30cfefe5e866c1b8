"""The accounts of memory under a ceiling: never more than it, no more reads than needed, nobody waits for ever."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from splitload.base.errors import StageError, UsageError
from splitload.runtime.ledger import Ledger, Run


class Memory:
    """What is in memory, seen from outside: stages that are used have to be there, and all of it has to fit."""

    def __init__(self, sizes: list[int], room: float, *, one_stage: bool = False) -> None:
        self.sizes, self.room = sizes, room
        self.dropped: list[int] = []
        self.shrunk = 0
        self.ledger = Ledger(sizes, room, drop=self.dropped.append, shrink=self._shrink, one_stage=one_stage)
        self.working: list[int] = []
        self.used: list[int] = []
        self._lock = threading.Lock()

    def _shrink(self) -> None:
        self.shrunk += 1

    def go(
        self, working: int, stages: range | None = None, between: Callable[[int], None] = lambda stage: None
    ) -> None:
        """Run through the stages."""
        with self.ledger.run(working) as run:
            with self._lock:
                self.working.append(working)
            for stage in stages or range(len(self.sizes)):
                with run.using(stage):
                    with self._lock:
                        self.used.append(stage)
                        self.check()
                    between(stage)
                    with self._lock:
                        self.used.remove(stage)
            with self._lock:
                self.working.remove(working)

    def check(self) -> None:
        resident = self.ledger.resident
        assert resident.issuperset(self.used)
        assert sum(self.sizes[stage] for stage in resident) + sum(self.working) <= self.room


def waiting(ledger: Ledger) -> int:
    return len(ledger._takers) + len(ledger._loaders) + len(ledger._comers)


def until_waiting(ledger: Ledger, count: int = 1) -> None:
    while waiting(ledger) < count:
        ledger.changed().wait(0.001)


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 6])
def test_as_few_stages_leave_as_can_be(slots: int) -> None:
    """No rule has fewer of k stages in turn leave than k (k - c) in k - 1 runs, where c of them fit."""
    memory = Memory([10] * 6, 10 * slots + 1)
    for _ in range(5):
        memory.go(1)
    before = len(memory.dropped)
    for _ in range(5):
        memory.go(1)
    assert len(memory.dropped) - before == 6 * (6 - slots)


def test_stages_of_many_runs_at_once_fit_and_all_runs_end() -> None:
    draw = random.Random(4)  # noqa: S311 - a test
    for _ in range(20):
        sizes = [draw.randint(1, 9) for _ in range(draw.randint(1, 7))]
        memory = Memory(sizes, max(sizes) + draw.randint(3, 12))
        failures: list[BaseException] = []

        def work(memory: Memory = memory, failures: list[BaseException] = failures, seed: int = 0) -> None:
            own = random.Random(seed)  # noqa: S311
            try:
                for _ in range(5):
                    memory.go(own.randint(1, 3), between=lambda _: threading.Event().wait(own.choice((0, 0, 1e-4))))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, kwargs={"seed": seed}) for seed in range(6)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if memory.ledger.ahead() is None:
                memory.ledger.changed().wait(0.001)
        for thread in threads:
            thread.join()
        assert not failures
        assert waiting(memory.ledger) == 0


def test_a_second_run_waits_where_both_do_not_fit() -> None:
    memory = Memory([10, 10], 15)
    other = threading.Thread(target=memory.go, args=(4,))
    with memory.ledger.run(4):
        other.start()
        until_waiting(memory.ledger)
        assert memory.working == []
    other.join()


def test_a_run_that_has_begun_goes_before_one_that_waits() -> None:
    memory = Memory([10, 10], 15)
    other = threading.Thread(target=memory.go, args=(4,))
    with memory.ledger.run(4) as run:
        other.start()
        until_waiting(memory.ledger)
        for stage in (0, 1):
            with run.using(stage):
                pass
    other.join()
    assert waiting(memory.ledger) == 0


def test_what_is_read_ahead_takes_no_room_of_what_is_needed_sooner() -> None:
    memory = Memory([10] * 5, 31)
    with memory.ledger.run(1) as run:
        with run.using(0):
            assert [memory.ledger.ahead() for _ in range(2)] == [1, None]
        with run.using(1):
            assert memory.ledger.ahead() == 2
        with run.using(2):
            assert memory.ledger.ahead() == 3  # in the place of one that has run
            assert memory.dropped == [1]  # and is needed latest
        with run.using(3):
            assert memory.ledger.ahead() == 4
    assert memory.ledger.resident == {0, 3, 4}


def test_a_model_that_runs_again_and_again_is_read_but_for_what_stays() -> None:
    memory = Memory([10] * 8, 31)
    read = []
    for turn in range(12):
        with memory.ledger.run(1) as run:
            for stage in range(8):
                with run.using(stage):
                    if (ahead := memory.ledger.ahead()) is not None:
                        read.append((turn, ahead))
        if (ahead := memory.ledger.ahead()) is not None:
            read.append((turn, ahead))
    assert len([turn for turn, _ in read if turn >= 5]) <= 7 * 7  # one of eight stays, beside two that take turns


def test_a_run_that_needs_room_has_it_before_the_reader() -> None:
    memory = Memory([10] * 3, 21)
    with memory.ledger.run(1) as run, run.using(0), memory.ledger.loading(1), memory.ledger.run(0) as other:
        thread = threading.Thread(target=other.using(2).__enter__)
        thread.start()
        until_waiting(memory.ledger)
        assert memory.ledger.ahead() is None
    thread.join()
    assert 2 in memory.ledger.resident


def test_a_stage_that_is_loaded_waits_for_those_that_run_sooner() -> None:
    memory = Memory([10] * 4, 31)
    for stage in range(4):  # nobody runs
        with memory.ledger.loading(stage):
            assert stage in memory.ledger.resident
    assert memory.dropped == [2]
    with memory.ledger.run(1) as run:
        with run.using(0), memory.ledger.loading(2):
            assert memory.dropped == [2, 3]
            thread = threading.Thread(target=lambda: memory.ledger.loading(3).__enter__())
            thread.start()
            until_waiting(memory.ledger)
        thread.join()  # in the place of the one that has run
        assert memory.dropped == [2, 3, 0]


@pytest.mark.parametrize("one_stage", [False, True])
def test_stages_that_a_run_leaves_out_are_loaded_before_those_that_it_waits_for(one_stage: bool) -> None:
    memory = Memory([10] * 4, 11, one_stage=one_stage)
    with memory.ledger.run(1) as run:
        use = run.using(3)  # which is not loaded yet
        loader = threading.Thread(target=lambda: [load(memory.ledger, stage) for stage in range(4)], daemon=True)
        loader.start()
        loader.join(60)
        assert not loader.is_alive()
        with use:
            assert memory.ledger.resident == {3}


def load(ledger: Ledger, stage: int) -> None:
    with ledger.loading(stage):
        pass


def test_a_loader_that_waits_learns_that_a_run_has_left_stages_out() -> None:
    memory = Memory([10] * 4, 11)
    for stage in range(2):
        load(memory.ledger, stage)
    with memory.ledger.run(1) as run:
        loader = threading.Thread(target=load, args=(memory.ledger, 2), daemon=True)
        with run.using(0):
            loader.start()
            until_waiting(memory.ledger)
        run.using(2)
        loader.join(60)
        assert not loader.is_alive()


def test_a_stage_of_which_each_use_brings_other_weights_is_used_by_one_and_renewed() -> None:
    renewed: list[int] = []
    ledger = Ledger([10, 10], 30, drop=lambda stage: None, alone={0}, renew=renewed.append)
    with ledger.run(1) as run, ledger.run(1) as other:
        second = threading.Thread(target=other.using(0).__enter__)
        with run.using(0):
            assert renewed == [0]
            second.start()
            until_waiting(ledger)
        second.join()
        assert renewed == [0, 0]
        with run.using(1):
            pass
    assert renewed == [0, 0]


def test_a_forked_child_waits_for_no_thread_of_the_parents() -> None:
    ledger = Ledger([10], 20, drop=lambda stage: None)
    with ledger._lock:  # as a thread may hold it at that moment
        ledger.forked()
        ledger.close()
    assert ledger.is_closed


def test_one_stage_is_used_at_a_time() -> None:
    memory = Memory([10, 20, 30], float("inf"), one_stage=True)
    second = threading.Thread(target=memory.go, args=(1,))
    with memory.ledger.run(1) as run, run.using(1):
        assert memory.ledger.ahead() == 2
        assert memory.ledger.ahead() is None
        second.start()  # its first stage has to wait
        until_waiting(memory.ledger)
        assert memory.ledger.resident == {1, 2}
    second.join()
    assert memory.dropped[:2] == [1, 2]


def test_a_run_that_never_fits_is_refused_and_others_go_on() -> None:
    memory = Memory([10_000_000], 15_000_000)
    with pytest.raises(UsageError, match=r"takes 6.0 MB .* 10.0 MB .* leaves 15.0 MB; give smaller inputs"):
        memory.go(6_000_000)
    memory.go(5_000_000)
    assert waiting(memory.ledger) == 0


def test_working_memory_that_the_runtime_keeps_counts_until_it_is_given_back() -> None:
    memory = Memory([10, 10], 25)
    memory.go(12)
    assert memory.ledger.resident == {1}  # beside 12 there is room for one
    memory.go(2)
    assert memory.ledger.resident == {1}
    memory.go(15)
    assert memory.shrunk == 0
    memory.go(2)
    assert memory.shrunk == 0


def test_the_runtime_is_asked_to_give_back_what_stands_in_the_way() -> None:
    memory = Memory([10, 4], 24)
    with memory.ledger.run(7), memory.ledger.run(7):
        pass
    memory.ledger._room = 20  # as if other sessions had come
    memory.go(7)
    assert memory.shrunk == 1


def test_who_waits_learns_that_it_was_closed() -> None:
    memory = Memory([10, 10], 12)
    failures: list[BaseException] = []

    def work(run: Run) -> None:
        try:
            run.using(1).__enter__()
        except StageError as error:
            failures.append(error)

    with memory.ledger.run(1) as run, run.using(0):
        thread = threading.Thread(target=work, args=(run,))
        thread.start()
        until_waiting(memory.ledger)
        memory.ledger.close()
        thread.join()
    assert [str(error) for error in failures] == ["the model was closed"]
    with pytest.raises(StageError):
        memory.go(1)


def test_who_is_interrupted_while_it_waits_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory([10, 10], 12)

    class Interrupted:
        def set(self) -> None: ...

        def wait(self) -> None:
            raise KeyboardInterrupt

    with memory.ledger.run(1) as run, run.using(0), monkeypatch.context() as patch:
        patch.setattr("splitload.runtime.ledger.Latch", Interrupted)
        use = memory.ledger.loading(1)
        with pytest.raises(KeyboardInterrupt), use:
            pass
        use.end()
    assert waiting(memory.ledger) == 0
    memory.go(1)
