"""Which stage loads on which thread when, and when it runs: a printable value, apart from what executes it.

The same value is produced by the simulator (`simulate`) and by the loader (its timeline), so that a predicted and
a measured schedule can be laid side by side. What the loader imports is made of named tuples: a dataclass takes
several times as long to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

_INFER_SIGNS = "abcdefghijklmnopqrstuvwxyz"
_LOAD_SIGNS = "123456789" + _INFER_SIGNS[9:].upper()


class Contention(NamedTuple):
    """How parallel loads slow each other down, and what a load call and a cut cost besides.

    Attributes:
        threads: Loads that can run at the same time, at least 1.
        serial_share: σ in [0, 1]: the share of loading that cannot run in parallel. With m loads at a time each
            takes `1 + σ (m - 1)` times as long as alone, so that k equal stages of a model that loads in T alone
            take `T (σ + (1 - σ) / k)`. Source: the form that explains Table 1 of the ICLR 2021 submission.
        thread_penalty: Further slow-down, as a share, once there are at least as many stages as threads.
            Source: the same paper states that it exists; its size is assumed.
        start_s: Seconds from the load call until the first load starts.
        cut_infer_s: Seconds that each stage of a cut infers longer than its blocks do in one session; one stage alone
            pays nothing. It stands for all that a cut costs besides its loads, such as buffers that are touched for the
            first time, and loads beside inferences.
    """

    threads: int
    serial_share: float = 0.0
    thread_penalty: float = 0.0
    start_s: float = 0.0
    cut_infer_s: float = 0.0

    def slowdown(self, num_stages: int) -> float:
        """Return how many times longer one load takes when `num_stages` stages load as the policy has it."""
        factor = 1.0 + self.serial_share * (min(num_stages, self.threads) - 1)
        return factor * (1.0 + self.thread_penalty) if num_stages >= self.threads > 1 else factor

    def beside_s(self, num_stages: int) -> float:
        """Return by how many seconds the first inference of each of `num_stages` stages takes longer than alone."""
        return self.cut_infer_s if num_stages > 1 else 0.0

    def clock(self, num_stages: int) -> Clock:
        """Return the clock of a plan of `num_stages` stages, of which none has been added."""
        return Clock(self.threads, self.slowdown(num_stages), self.start_s, self.beside_s(num_stages))


class Task(NamedTuple):
    """One load or one inference of one stage; times in seconds from the load call."""

    stage: int
    kind: Literal["load", "infer"]
    thread: int
    start_s: float
    end_s: float


class Schedule(NamedTuple):
    """Loads and inferences of all stages on one clock.

    Attributes:
        tasks: In order of their start.
        source: "measured", "simulated" or "predicted".
    """

    tasks: tuple[Task, ...]
    source: Literal["measured", "simulated", "predicted"]

    def _last_end_s(self, kind: str) -> float:
        return max((task.end_s for task in self.tasks if task.kind == kind), default=0.0)

    @property
    def load_makespan_s(self) -> float:
        """Seconds until the last stage is loaded."""
        return self._last_end_s("load")

    @property
    def ttfo_s(self) -> float:
        """Seconds until the last stage's inference ends: the time to first output."""
        return self._last_end_s("infer")

    def to_json(self) -> dict[str, Any]:
        """Return the schedule as plain JSON values."""
        return {"source": self.source, "tasks": [task._asdict() for task in self.tasks]}

    def render(self, width: int = 60) -> str:
        """Draw the schedule as text: a row for each thread that loads, and one for inference.

        Stage 1 loads as `1` and infers as `a`, the ninth as `9` and `i`, the tenth as `J` and `j`, and so on; stages
        past the 26th share the sign `+`. A stage that takes less than a column has one all the same, if the row has as
        many columns as stages.
        """
        total_s = max((task.end_s for task in self.tasks), default=0.0)
        if total_s <= 0.0:
            return "(nothing ran)"
        tasks: dict[tuple[str, int], list[Task]] = {}
        for task in sorted(self.tasks, key=lambda task: (task.start_s, task.end_s)):
            tasks.setdefault((task.kind, task.thread), []).append(task)
        rows = {key: _row(each, total_s, width) for key, each in tasks.items()}
        order = sorted(rows, key=lambda key: (key[0] == "infer", key[1]))
        lines = [
            f"{'load ' + str(thread) if kind == 'load' else 'infer':>8} |{rows[kind, thread]}|"
            for kind, thread in order
        ]
        lines.append(f"{'':8} 0{f'{total_s * 1e3:.1f} ms, {self.source}':>{width}}")
        return "\n".join(lines)


def _row(tasks: Sequence[Task], total_s: float, width: int) -> str:
    """Return the row of a drawing that has these tasks, in order of their start; each begins in a column of its own."""
    starts: list[int] = []
    for task in tasks:
        after = starts[-1] + 1 if starts else 0
        starts.append(max(after, int(task.start_s / total_s * width)))
    for place in range(len(starts)):  # those at the end move to the left, if they must
        starts[place] = max(0, min(starts[place], width - len(starts) + place))
    row = [" "] * width
    for task, first, limit in zip(tasks, starts, [*starts[1:], width], strict=True):
        last = max(first + 1, min(limit, round(task.end_s / total_s * width)))
        signs = _LOAD_SIGNS if task.kind == "load" else _INFER_SIGNS
        row[first:last] = (signs[task.stage] if task.stage < len(signs) else "+") * (last - first)
    return "".join(row)


class Clock:
    """The execution policy on a clock, stage by stage (Algorithm 2, with half-open ranges).

    Loads start in stage order, the first after `start_s`, each on the thread that is free first; stage i infers once it
    is loaded and stage i-1 has finished. With fewer stages than threads every load starts at once (case 1); otherwise
    the rest wait for a thread while loaded stages infer (case 2). Storage serves one load after the other, in stage
    order, as the loader reads ahead: what a load reads comes first and at full bandwidth, once storage is free. The
    rest of each load takes `slowdown` times as long as alone, and each inference `beside_s` longer.

    Attributes:
        slowdown: `Contention.slowdown(k)` of the final number of stages k, a factor.
        beside_s: `Contention.beside_s(k)`.
        thread: Where the last stage so far loaded.
        load_start_s: Seconds from the load call until that load started.
        load_end_s: And until it ended.
        infer_start_s: Seconds from the load call until the last stage so far began to infer.
        loaded_s: Seconds from the load call until every stage so far is loaded.
        inferred_s: Seconds from the load call until the last stage so far has inferred.
    """

    __slots__ = (
        "_busy", "_start_s", "_storage_s", "_threads", "beside_s", "infer_start_s", "inferred_s", "load_end_s",
        "load_start_s", "loaded_s", "slowdown", "thread",
    )  # fmt: skip

    def __init__(self, threads: int, slowdown: float, start_s: float = 0.0, beside_s: float = 0.0) -> None:
        self._threads = threads
        self._start_s = self._storage_s = start_s
        self.slowdown = slowdown
        self.beside_s = beside_s
        self._busy: list[float] = []  # until when each thread that has loaded is busy
        self.thread = 0
        self.load_start_s = self.load_end_s = self.infer_start_s = self.loaded_s = self.inferred_s = 0.0

    def add(self, load_s: float, infer_s: float, read_s: float = 0.0) -> float:
        """Append a stage and return by how many seconds it moves the time to first output.

        What this returns telescopes: over all stages it adds up to the time to first output.

        Args:
            load_s: Seconds the stage takes to load alone, reading included.
            infer_s: Seconds its first inference takes.
            read_s: Seconds of its load that storage is busy for.
        """
        busy = self._busy
        if len(busy) < self._threads:
            start_s = self._start_s
            thread = len(busy)
            busy.append(start_s)
        else:
            start_s = min(busy)
            thread = busy.index(start_s)
        end_s = start_s + (load_s - read_s) * self.slowdown
        if read_s:
            read_start_s = max(start_s, self._storage_s)
            self._storage_s = read_start_s + read_s
            end_s += self._storage_s - start_s
        busy[thread] = end_s
        self.thread, self.load_start_s, self.load_end_s = thread, start_s, end_s
        if end_s > self.loaded_s:
            self.loaded_s = end_s
        before_s = self.inferred_s
        self.infer_start_s = end_s if end_s > before_s else before_s
        self.inferred_s = self.infer_start_s + infer_s + self.beside_s
        return self.inferred_s - before_s


def held_up_by(threads: Sequence[int], held: int) -> tuple[int, ...]:
    """Return the stages that hold up the first output, last first; what storage makes loads wait for is left out.

    Args:
        threads: On which each stage loads.
        held: The last stage that infers as soon as it is loaded; each further one loads before on the same thread.
    """
    return tuple(stage for stage in range(held, -1, -1) if threads[stage] == threads[held])


def simulate(
    load_s: Sequence[float],
    infer_s: Sequence[float],
    contention: Contention,
    source: Literal["simulated", "predicted"] = "simulated",
    read_s: Sequence[float] | None = None,
) -> Schedule:
    """Return the schedule that the execution policy (`Clock`) gives these stages.

    Args:
        load_s: Seconds each stage takes to load alone, reading included.
        infer_s: Seconds each stage's first inference takes.
        contention: Threads and their interference.
        source: What the durations are.
        read_s: Seconds of each load that storage is busy for; by default 0.
    """
    clock = contention.clock(len(load_s))
    tasks: list[Task] = []
    reads = [0.0] * len(load_s) if read_s is None else read_s
    for stage, (load, infer, read) in enumerate(zip(load_s, infer_s, reads, strict=True)):
        clock.add(load, infer, read)
        tasks.append(Task(stage, "load", clock.thread, clock.load_start_s, clock.load_end_s))
        tasks.append(Task(stage, "infer", 0, clock.infer_start_s, clock.inferred_s))
    return Schedule(tuple(sorted(tasks, key=lambda task: (task.start_s, task.end_s))), source)
