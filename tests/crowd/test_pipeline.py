"""The state machine of a run: order, bounds, recovery, hangs and late reports, with a scripted engine."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitload.base.errors import StageError, UsageError
from splitload.crowd.entities import Assignment, Measured, Stage, Step, Task, Worker
from splitload.crowd.mechanisms import Mechanisms
from splitload.crowd.pipeline import Pipeline


def chain(num_stages: int, run_s: float = 1.0, load_s: float = 0.0, memory_bytes: int = 10) -> list[Stage]:
    return [Stage(f"s{index}", 10, memory_bytes, run_s, load_s) for index in range(num_stages)]


def crowd(pipeline: Pipeline, *names: str) -> Pipeline:
    for name in names:
        pipeline.add_worker(Worker(name), 0.0)
    return pipeline


def feed(pipeline: Pipeline, count: int) -> None:
    for item in range(count):
        pipeline.add_item(item)


def finish(pipeline: Pipeline, assignment: Assignment, now_s: float, run_s: float = 1.0) -> bool:
    return pipeline.finished(assignment, now_s, Measured(run_s))


class Engine:
    """Carries steps out in any order, kills and revives workers, and keeps count of what must be right."""

    def __init__(self, pipeline: Pipeline, names: list[str], seed: int) -> None:
        self.pipeline, self.random = pipeline, random.Random(seed)  # noqa: S311
        self.alive = set(names)
        self.names = names
        self.now_s = 0.0
        self.queues: dict[str, list[Assignment]] = {name: [] for name in names}
        self.late: list[Assignment] = []
        self.outputs: dict[Task, set[str]] = {}
        self.delivered: dict[int, int] = {}
        self.most = 0
        crowd(pipeline, *names)

    def carry_out(self, step: Step) -> None:
        for cancelled in step.cancels:
            queue = self.queues[cancelled.worker]
            if cancelled in queue[1:]:
                queue.remove(cancelled)
        for task in step.releases:
            self.outputs.pop(task, None)
        for assignment in step.assignments:
            assert assignment.worker in self.alive
            task = assignment.task
            if task.stage:
                assert assignment.input_worker in self.outputs[Task(task.stage - 1, task.item)]
            self.queues[assignment.worker].append(assignment)
            assert len(self.queues[assignment.worker]) <= 2
        for fetch in step.fetches:
            if fetch.worker in self.outputs.get(Task(len(self.pipeline.stages) - 1, fetch.item), ()):
                self.delivered[fetch.item] = self.delivered.get(fetch.item, 0) + self.pipeline.delivered(
                    fetch.item, self.now_s
                )
            else:
                self.pipeline.undelivered(fetch, self.now_s)

    def kill(self, name: str) -> None:
        self.alive.discard(name)
        self.late += self.queues[name]
        self.queues[name] = []
        for places in self.outputs.values():
            places.discard(name)
        self.pipeline.remove_worker(name, self.now_s)

    def revive(self, name: str) -> None:
        self.alive.add(name)
        self.pipeline.add_worker(Worker(name), self.now_s)

    def run(self, deaths: int) -> list[int]:
        order = []
        for _ in range(100_000):
            self.carry_out(self.pipeline.step(self.now_s))
            order += [outcome.item for outcome in self.pipeline.take()]
            if self.pipeline.done:
                self.carry_out(self.pipeline.step(self.now_s))
                return order
            self.now_s += self.random.random()
            chance = self.random.random()
            if deaths and chance < 0.1 and len(self.alive) > 1:
                deaths -= 1
                self.kill(self.random.choice(sorted(self.alive)))
            elif chance < 0.15 and len(self.alive) < len(self.names):
                self.revive(self.random.choice(sorted(set(self.names) - self.alive)))
            elif chance < 0.2 and self.late:
                assert not finish(self.pipeline, self.late.pop(), self.now_s)
            else:
                busy = [name for name in sorted(self.alive) if self.queues[name]]
                if busy:
                    assignment = self.queues[self.random.choice(busy)].pop(0)
                    missing = assignment.task.stage and assignment.input_worker not in self.outputs.get(
                        Task(assignment.task.stage - 1, assignment.task.item), ()
                    )
                    if missing:
                        self.pipeline.lost_input(assignment, self.now_s)
                    elif finish(self.pipeline, assignment, self.now_s):
                        self.outputs.setdefault(assignment.task, set()).add(assignment.worker)
                        assert not finish(self.pipeline, assignment, self.now_s), "a doubled report"
        raise AssertionError("the run does not end")


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    num_stages=st.integers(1, 5),
    num_workers=st.integers(1, 5),
    num_items=st.integers(1, 25),
    deaths=st.integers(0, 12),
    affinity=st.sampled_from(["finish", "tiers", "off"]),
    streaming=st.booleans(),
    one_resident=st.booleans(),
    hang_factor=st.sampled_from([None, 1.0, 8.0]),
)
def test_every_result_comes_once_and_in_order_whatever_dies(
    seed: int, num_stages: int, num_workers: int, num_items: int, deaths: int, affinity: str, streaming: bool,
    one_resident: bool, hang_factor: float | None,
) -> None:  # fmt: skip
    mechanisms = Mechanisms(
        affinity=affinity,  # type: ignore[arg-type]
        streaming=streaming,
        one_resident=one_resident,
        hang_factor=hang_factor,
        hang_floor_s=0.0,
    )
    pipeline = Pipeline(chain(num_stages, load_s=seed % 3), mechanisms)
    engine = Engine(pipeline, [f"w{number}" for number in range(num_workers)], seed)
    feed(pipeline, num_items)
    assert engine.run(deaths) == list(range(num_items))
    assert engine.delivered == dict.fromkeys(range(num_items), 1)
    assert not engine.outputs, "outputs that nothing needs any more were not released"


def test_a_stage_is_placed_only_when_the_first_item_has_left_the_one_before() -> None:
    pipeline = crowd(Pipeline(chain(2, load_s=50.0)), "a", "b")
    feed(pipeline, 3)
    step = pipeline.step(0.0)
    assert {assignment.task.stage for assignment in step.assignments} == {0}
    assert not step.preparations
    assert finish(pipeline, step.assignments[0], 51.0)
    assert [each.task for each in pipeline.step(51.0).assignments if each.task.stage == 1] == [Task(1, 0)]


def test_without_deferral_all_stages_are_loaded_first() -> None:
    pipeline = crowd(Pipeline(chain(3, load_s=5.0), Mechanisms(deferred_loading=False)), "a", "b", "c", "d")
    feed(pipeline, 1)
    step = pipeline.step(0.0)
    assert sorted(preparation.stage for preparation in step.preparations) == [0, 0, 1, 2]
    for preparation in step.preparations:
        pipeline.prepared(preparation, 5.0, Measured(0.0, load_s=5.0))
    assert not pipeline.step(5.0).preparations


def test_the_barrier_holds_a_stage_back_until_all_items_are_there() -> None:
    pipeline = crowd(Pipeline(chain(2), Mechanisms(streaming=False)), "a")
    feed(pipeline, 3)
    order = []
    while not pipeline.done:
        step = pipeline.step(float(len(order)))
        for fetch in step.fetches:
            pipeline.delivered(fetch.item, 0.0)
        for assignment in step.assignments:
            order.append(assignment.task)
            finish(pipeline, assignment, float(len(order)))
        pipeline.take()
    assert order == [Task(stage, item) for stage in range(2) for item in range(3)]


def test_items_in_flight_are_bounded_until_they_are_taken() -> None:
    pipeline = crowd(Pipeline(chain(1), max_in_flight=2), "a", "b")
    feed(pipeline, 5)
    first, second = pipeline.step(0.0).assignments
    finish(pipeline, second, 1.0)
    (fetch,) = pipeline.step(1.0).fetches
    pipeline.delivered(fetch.item, 1.0)
    assert pipeline.take() == [], "item 0 comes first"
    assert not pipeline.step(1.0).assignments, "item 1 is done, and waits to be taken"
    assert [outcome.item for outcome in pipeline.take(ordered=False)] == [1]
    assert [each.task.item for each in pipeline.step(1.0).assignments] == [2]
    assert first.task.item == 0


def test_a_failed_item_has_its_error_in_its_place_and_the_others_go_on() -> None:
    pipeline = crowd(Pipeline(chain(2)), "a")
    feed(pipeline, 3)
    error = ValueError("no such token")
    outcomes = []
    while not pipeline.done:
        step = pipeline.step(0.0)
        for fetch in step.fetches:
            pipeline.delivered(fetch.item, 0.0)
        for assignment in step.assignments:
            if assignment.task == Task(1, 1):
                assert pipeline.failed(assignment, 0.0, error)
                assert not pipeline.failed(assignment, 0.0, error)
            else:
                finish(pipeline, assignment, 0.0)
        outcomes += pipeline.take()
    assert [(outcome.item, outcome.error) for outcome in outcomes] == [(0, None), (1, error), (2, None)]


def test_without_recovery_only_the_items_of_the_lost_worker_fail() -> None:
    pipeline = crowd(Pipeline(chain(1), Mechanisms(recovery=False)), "a", "b")
    feed(pipeline, 2)
    step = pipeline.step(0.0)
    lost = next(each for each in step.assignments if each.worker == "a")
    pipeline.remove_worker("a", 0.5)
    (outcome,) = pipeline.take(ordered=False)
    assert outcome.item == lost.task.item
    assert isinstance(outcome.error, StageError)  # the item's; a ClusterError ends the crowd


def test_a_lost_output_is_made_again_from_the_input_that_is_kept() -> None:
    pipeline = crowd(Pipeline(chain(3, memory_bytes=10)), "a")
    feed(pipeline, 1)
    (task,) = pipeline.step(0.0).assignments
    finish(pipeline, task, 1.0)
    pipeline.add_worker(Worker("b"), 1.0)
    (task,) = pipeline.step(1.0).assignments
    assert task.task == Task(1, 0)
    other = {"a": "b", "b": "a"}[task.worker]
    finish(pipeline, task, 2.0)
    pipeline.remove_worker(task.worker, 2.0)
    again = pipeline.step(2.0).assignments
    assert [each.task for each in again] == [Task(1, 0) if other == "a" else Task(0, 0)]


def test_a_task_that_hangs_is_placed_elsewhere_and_the_first_result_counts() -> None:
    pipeline = crowd(Pipeline(chain(1), Mechanisms(hang_factor=3.0, hang_floor_s=0.0)), "a", "b")
    feed(pipeline, 1)
    step = pipeline.step(0.0)
    (hung,) = step.assignments
    assert step.wake_s == 9.0, "what was never measured has the factor twice"
    assert not pipeline.step(8.9).assignments
    for item in range(1, 5):
        pipeline.add_item(item)
    again, *others = pipeline.step(9.0).assignments
    assert again.task == hung.task
    assert {again.worker, *(each.worker for each in others)} == {"a", "b"} - {hung.worker}
    assert finish(pipeline, again, 10.0)
    assert hung in pipeline.step(10.0).cancels
    assert not finish(pipeline, hung, 11.0)
    assert hung.worker in {each.worker for each in pipeline.step(11.0).assignments}, "it has reported, and works again"


def test_a_worker_that_refuses_a_stage_is_not_given_it_again() -> None:
    pipeline = crowd(Pipeline(chain(1)), "a", "b")
    feed(pipeline, 1)
    (first,) = pipeline.step(0.0).assignments
    pipeline.refused(first, 0.0, "its disk is full")
    (second,) = pipeline.step(0.0).assignments
    assert {first.worker, second.worker} == {"a", "b"}
    assert pipeline.lacking() is None
    pipeline.refused(second, 0.0, "its disk is full")
    assert not pipeline.step(0.0).assignments
    assert pipeline.lacking() == "no worker can run stage 's0'; one of them says: its disk is full"


def test_a_stage_that_nobody_can_hold_is_told_with_what_is_lacking() -> None:
    stages = [*chain(1), replace(chain(1)[0], name="large", memory_bytes=50_000_000)]
    pipeline = Pipeline(stages)
    pipeline.add_worker(Worker("pi", memory_bytes=30_000_000), 0.0)
    pipeline.add_worker(Worker("phone", memory_bytes=40_000_000), 0.0)
    assert pipeline.lacking() is None, "nothing is to be done"
    pipeline.add_item(0)
    assert pipeline.lacking() == (
        "no worker can hold stage 'large': it needs 50.0 MB, and of 2 workers the one that may use most, 'phone', "
        "lacks 10.0 MB of it; cut the model into smaller stages, let a larger worker take part, or allow more "
        "by --residency or a worker's --memory, of which 20.0 MB are the runtime's"
    )
    pipeline.add_worker(Worker("desk"), 0.0)
    assert pipeline.lacking() is None


def test_a_worker_drops_its_stage_for_the_next_and_keeps_both_only_where_that_is_meant() -> None:
    for one_resident, memory_bytes, expected in ((True, 20, (0,)), (False, 20, ()), (False, 19, (0,))):
        pipeline = Pipeline(chain(2), Mechanisms(one_resident=one_resident))
        pipeline.add_worker(Worker("a", memory_bytes), 0.0)
        pipeline.add_item(0)
        finish(pipeline, pipeline.step(0.0).assignments[0], 1.0)
        assert pipeline.step(1.0).assignments[0].unload == expected


def test_bad_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="needs a stage"):
        Pipeline([])
    with pytest.raises(UsageError, match="at least one item"):
        Pipeline(chain(1), max_in_flight=0)
    pipeline = Pipeline(chain(1))
    pipeline.add_item(3)
    with pytest.raises(ValueError, match="rising order"):
        pipeline.add_item(3)
