"""Faults in emulated crowds: workers that are killed, links that are cut, and when tasks are placed anew."""

from __future__ import annotations

import concurrent.futures
import contextlib
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

from splitload.crowd.crowd import Crowd
from splitload.crowd.mechanisms import Mechanisms
from splitload.crowd.pipeline import Pipeline
from splitload.studies.crowd_runs import Sample, run_batch
from splitload.studies.crowd_subjects import Subject
from splitload.studies.emulation import Emulation

CUT_S = 3.0
_ENDS = ("finished", "failed", "refused", "dropped", "lost_input")  # of an assignment, as the engine tells the pipeline


class PlacementWatch:
    """Notes what each worker has to do, and when tasks are placed anew of one that the crowd has lost.

    It stands before the pipeline of a crowd; all but `of` is called in the event loop of its client.

    Args:
        pipeline: Its methods are replaced by ones that note and call them.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._given: dict[int, tuple[Any, str]] = {}  # task and worker, by attempt
        self._made: dict[Any, str] = {}  # by whom, by task
        self._losses: dict[str, dict[str, Any]] = {}
        self._step, self._remove = pipeline.step, pipeline.remove_worker
        replaced: dict[str, Any] = {"step": self._stepped, "remove_worker": self._removed}
        for name in _ENDS:
            replaced[name] = self._ending(name, getattr(pipeline, name))
        for name, method in replaced.items():
            setattr(pipeline, name, method)

    @classmethod
    def on(cls, crowd: Crowd) -> PlacementWatch:
        """Return the watch on a crowd."""
        return cls(crowd._driver._pipeline)

    def of(self, worker: str | None) -> dict[str, Any] | None:
        """Return what is known of a worker that was lost, by its address; None if the crowd has not lost it.

        - held: How many tasks it had to do.
        - lost_s, placed_s: When the crowd took it for lost, and when the first of these, or of those whose results it
          kept, was given to another worker, of `time.perf_counter`; None where none was.
        """
        return None if worker is None else self._losses.get(worker)

    def _stepped(self, now_s: float) -> Any:
        step = self._step(now_s)
        at_s = time.perf_counter()
        for each in step.assignments:
            self._given[each.attempt] = each.task, each.worker
            for loss in self._losses.values():
                if loss["placed_s"] is None and each.task in loss["tasks"]:
                    loss["placed_s"] = at_s
        return step

    def _removed(self, name: str, now_s: float) -> None:
        held = {attempt: task for attempt, (task, worker) in self._given.items() if worker == name}
        made = {task for task, worker in self._made.items() if worker == name}
        if held or made:  # else it was not there, or did nothing
            loss = {"held": len(held), "tasks": made.union(held.values()), "lost_s": time.perf_counter()}
            self._losses.setdefault(name, {**loss, "placed_s": None})
        for attempt in held:
            del self._given[attempt]
        self._remove(name, now_s)

    def _ending(self, name: str, method: Any) -> Any:
        def ended(order: Any, *rest: Any) -> Any:
            self._given.pop(order.attempt, None)
            if name == "finished":
                self._made[order.task] = order.worker
            return method(order, *rest)

        return ended


def killed_batch(
    emulation: Emulation,
    subject: Subject,
    seeds: Sequence[int],
    name: str,
    after_s: float,
    mechanisms: Mechanisms | None = None,
) -> Sample:
    """Run a batch, and kill a worker in the middle, which is started again at once.

    Args:
        emulation: The devices, which are all part of the crowd again at the end.
        subject: What is run.
        seeds: Of its inputs.
        name: Of the device.
        after_s: When, from the first input on.
        mechanisms: See `Mechanisms`.

    Returns:
        As `run_batch`, and:

        - killed, killed_after_s: The device, and when that was.
        - held: How many tasks it had to do; None if it was killed when the batch was over.
        - noticed_s, placed_s: From then until the crowd took it for lost, and until the first of its tasks, or of those
          whose results it kept, was given to another worker; None where none was.

    Raises:
        SplitloadError: If the crowd fails as a whole, or the worker does not come back.
    """
    address = emulation.address_of(name)
    at_s: list[float] = []
    watches: list[PlacementWatch] = []
    over = threading.Event()

    def kill() -> None:
        over.wait(after_s)
        at_s.append(emulation.kill(name))
        emulation.restart(name)

    def meanwhile(crowd: Crowd) -> None:
        watches.append(PlacementWatch.on(crowd))
        begun.append((time.perf_counter(), pool.submit(kill)))

    begun: list[tuple[float, concurrent.futures.Future[None]]] = []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            sample = run_batch(emulation, subject, seeds, mechanisms, meanwhile=meanwhile)
        finally:
            over.set()
    start_s, killing = begun[0]
    killing.result()
    emulation.wait()
    loss = watches[0].of(address)
    return {
        **sample,
        "killed": name,
        "killed_after_s": at_s[0] - start_s,
        "held": None if loss is None else loss["held"],
        "noticed_s": None if loss is None else loss["lost_s"] - at_s[0],
        "placed_s": None if loss is None or loss["placed_s"] is None else loss["placed_s"] - at_s[0],
    }


class Storm:
    """Kills workers, which are started again, and cuts links for a while, at random points of a batch.

    Args:
        emulation: The devices.
        num_inputs: Of the batch.
        kills: How many workers.
        cuts: How many links.
        seed: Of when and which.
    """

    def __init__(self, emulation: Emulation, num_inputs: int, kills: int, cuts: int, seed: int) -> None:
        self._emulation, self._random = emulation, random.Random(seed)  # noqa: S311
        self._faults = ["kill"] * kills + ["cut"] * cuts
        self._random.shuffle(self._faults)
        last = max(num_inputs * 9 // 10, 1)
        self._points = sorted(self._random.randrange(last) for _ in self._faults)
        self._struck: set[str] = set()
        self._lock = threading.Lock()
        self._exit = contextlib.ExitStack()
        self._pool = self._exit.enter_context(concurrent.futures.ThreadPoolExecutor(kills + cuts or 1))
        self._works: list[concurrent.futures.Future[None]] = []
        self.done: list[dict[str, Any]] = []

    def on_output(self, count: int) -> None:
        """Have happen what is due once so many outputs are there; it goes on beside."""
        while self._points and self._points[0] <= count:
            self._points.pop(0)
            with self._lock:
                there = [name for name in self._emulation.names if name not in self._struck]
                if not there:  # each has its own by now: it has to wait
                    self._points.insert(0, count + 1)
                    return
                name = self._random.choice(there)
                self._struck.add(name)
            fault = self._faults.pop()
            self.done.append({"fault": fault, "device": name, "after_outputs": count})
            self._works.append(self._pool.submit(self._strike, fault, name))

    def end(self) -> None:
        """Wait until all is as it was.

        Raises:
            SplitloadError: If a worker does not come back.
        """
        self._exit.close()
        for work in self._works:
            work.result()
        self._emulation.wait()

    def _strike(self, fault: str, name: str) -> None:
        if fault == "kill":
            self._emulation.kill(name)
            self._emulation.restart(name)
            self._emulation.wait([name])
        else:
            with self._emulation.cut(name):
                time.sleep(CUT_S)
        with self._lock:
            self._struck.discard(name)
