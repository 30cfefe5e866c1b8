"""The ordered loading by itself: hand-over to who asks, interrupts at each place, generations, exit."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from loading_contract import HandPool, Stages

from splitload.base.errors import StageError
from splitload.runtime import ordered
from splitload.runtime.ordered import OrderedLoading

WAIT_S = 60


class Owner:
    """Stages whose values are their numbers, a hundred more in each generation."""

    def __init__(self, pool: HandPool, num_stages: int = 4, first: int = 0, **named: Any) -> None:
        self.stages, self.first = Stages(), first
        self.told: list[tuple[int, int]] = []
        self.loading: OrderedLoading[int] = OrderedLoading(Path("m.splitload"), num_stages, pool, **named)

    def load(self, index: int, lane: int) -> int:
        self.stages(index)
        return self.first + index

    def after(self, index: int, loaded: int) -> None:
        self.told.append((index, loaded))

    def start(self, threads: int = 1) -> None:
        self.loading.start(threads, self.load, self.after)


def test_what_is_told_of_each_stage() -> None:
    pool = HandPool()
    owner = Owner(pool)
    owner.start(2)
    pool.run_all()
    assert owner.loading.values == [0, 1, 2, 3]
    assert owner.told == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [lane for lane, *_ in owner.loading.loads.values()] == [0, 1, 0, 1]
    assert all(0 <= start_s <= end_s for _, start_s, end_s in owner.loading.loads.values())
    assert owner.loading.is_ready


def test_tasks_of_a_generation_that_was_given_up_do_nothing() -> None:
    pool = HandPool()
    before = Owner(pool)
    before.start(2)
    pool.run()
    before.loading.close()
    after = Owner(pool, num_stages=2, first=100)  # with other stages
    after.start(2)
    pool.run_all()
    assert before.stages.order == [0]
    assert after.stages.order == [0, 1]
    assert (before.loading.values, after.loading.values) == ([None] * 4, [100, 101])
    assert before.told == [(0, 1)]
    after.loading.check()
    with pytest.raises(StageError, match="closed"):
        before.loading.check()


def test_an_heir_has_latches_of_its_own() -> None:
    pool, given_up = HandPool(), []
    owner = Owner(pool, given_up=[lambda: given_up.append("before")])
    done = owner.loading.latch()
    owner.start()
    pool.run()
    heir = owner.loading.heir([lambda: given_up.append("heir")])
    assert (done.is_set(), heir.all_loaded.is_set(), heir.latch().is_set()) == (True, False, False)
    assert given_up == ["before"]
    assert heir.values == [None] * 4
    heir.start(1, owner.load, owner.after)
    pool.run_all()
    assert owner.stages.order == [0, 0, 1, 2, 3]
    assert heir.is_ready


@pytest.mark.parametrize("error", [None, StageError("no luck")])
def test_the_heir_of_what_is_over_is_over(error: StageError | None) -> None:
    owner = Owner(HandPool())
    owner.loading.give_up(error)
    heir = owner.loading.heir()
    assert heir.take(0) is None
    assert heir.all_loaded.wait(0)
    with pytest.raises(StageError, match="closed" if error is None else "no luck"):
        heir.check()


def test_without_a_thread_it_says_so() -> None:
    class Empty(HandPool):
        def submit(self, *_: Any) -> bool:
            return False

    owner = Owner(Empty())
    with pytest.raises(StageError, match=r"cannot load 'm.splitload': the system has no thread left"):
        owner.start(2)
    with pytest.raises(StageError, match="no thread left"):
        owner.loading.check()
    assert owner.loading.take(3) is None


def test_what_was_closed_takes_nothing_more() -> None:
    owner = Owner(HandPool())
    owner.loading.close()
    owner.loading.replace(0, 7)
    assert owner.loading.values == [None] * 4
    with pytest.raises(StageError, match="closed"), owner.loading.inside():
        pytest.fail("it is inside")


class Session:
    """What is loaded, as far as it can be told whether anybody keeps it."""


@pytest.mark.parametrize("fails", ["load", "after"])
def test_what_fails_keeps_no_value_until_the_garbage_is_collected(fails: str) -> None:
    """Stage 0 is loaded before stage 2 fails, stage 1 and what `replace` brings come after."""
    pool, made = HandPool(), []
    loading = OrderedLoading(Path("m.splitload"), 4, pool, lets_go=True)

    def session() -> Session:
        one = Session()
        made.append(weakref.ref(one))
        return one

    def load(index: int, lane: int) -> Session:
        if index == 1:
            pool.run()  # the next stage, on another lane
            assert loading.error is not None
        if (index, fails) == (2, "load"):
            raise OSError("no luck")
        return session()

    def after(index: int, loaded: int) -> None:
        if (index, fails) == (2, "after"):
            raise OSError("no luck")

    gc.disable()
    try:
        loading.start(2, load, after)
        pool.run()
        pool.run()
        loading.replace(0, session())
        assert made
        assert [each() for each in made] == [None] * len(made)
        assert loading.values == [None] * 4
    finally:
        gc.enable()
    with pytest.raises(StageError, match="no luck"):
        loading.check()


def test_what_comes_too_late_goes_before_the_process_may_end() -> None:
    """The runtime would be freeing a session while the process takes it down."""
    pool, was_inside = HandPool(), []
    loading = OrderedLoading(Path("m.splitload"), 1, pool)

    class Late:
        def __del__(self) -> None:
            was_inside.append(loading.is_inside())

    def load(index: int, lane: int) -> Late:
        loading.give_up()
        return Late()

    loading.start(1, load, lambda *_: None)
    pool.run()
    assert was_inside == [True]


def test_what_is_of_use_without_the_others_stays() -> None:
    pool = HandPool()
    owner = Owner(pool)
    owner.stages.fail(1, OSError("no luck"))
    owner.start()
    pool.run_all()
    assert owner.loading.values == [0, None, None, None]


def test_a_stage_is_handed_over_once() -> None:
    pool = HandPool()
    owner = Owner(pool, num_stages=1, hand_over_s=WAIT_S)
    owner.start()
    for _ in range(2):
        owner.loading.load_here(owner.load, owner.after)
    pool.run_all()  # which does not wait, as somebody has asked
    assert owner.stages.order == [0]
    several = Owner(pool, hand_over_s=WAIT_S)
    several.start()
    several.loading.load_here(several.load, several.after)
    assert several.stages.order == []


def interrupted(work: Any, place: int) -> bool:
    """Do something, with a Ctrl-C at the place of that number where Python may deliver one; return whether it was."""
    left = place

    def press(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    try:
        sys.setprofile(press)
        work()
        sys.setprofile(None)
    except KeyboardInterrupt:
        return True
    return False


def test_an_interrupt_anywhere_while_a_stage_is_loaded_here() -> None:
    answered = place = 0
    while True:
        pool = HandPool()
        owner = Owner(pool, num_stages=1, hand_over_s=0)
        owner.start()
        was = interrupted(lambda owner=owner: owner.loading.load_here(owner.load, owner.after), place)
        pool.run_all()
        assert owner.loading.all_loaded.is_set()
        assert owner.loading.take(0) == 0
        assert not owner.loading._inside
        owner.loading.close()  # does not wait for anybody
        if not was:
            break
        place, answered = place + 1, answered + 1
    assert answered > 20


def test_an_interrupt_anywhere_while_it_is_closed() -> None:
    place = 0
    while True:
        pool = HandPool()
        owner = Owner(pool)
        owner.start(2)
        pool.run()
        was = interrupted(owner.loading.close, place)
        if owner.loading.is_over():
            pool.run_all()
            assert owner.stages.order == [0]
            assert owner.loading._latches[3].is_set()
        else:
            assert place < 5  # it had not begun
        owner.loading.close()
        if not was:
            break
        place += 1
    assert place > 20


def test_all_are_let_go_of_at_exit_whatever_is_pressed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pressed:
        presses = 2

        def _let_go(self) -> None:
            self.presses -= 1
            if self.presses >= 0:
                raise KeyboardInterrupt

        def _inherit(self) -> None: ...

    owners = [Pressed(), Pressed()]
    monkeypatch.setattr(ordered, "_owners", set(owners))
    ordered._let_all_go()
    assert [owner.presses for owner in owners] == [-1, -1]
