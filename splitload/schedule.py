"""Which stage loads on which thread when, and when it runs: a printable value, apart from what executes it.

The same value is produced by the simulator (`simulate`) and by the loader (its timeline), so that a predicted and
a measured schedule can be laid side by side. What the loader imports is made of named tuples: a dataclass takes
several times as long to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple


class Contention(NamedTuple):
    """How parallel loads slow each other down.

    Attributes:
        threads: Loads that can run at the same time, at least 1.
        serial_share: σ in [0, 1]: the share of loading that cannot run in parallel. With m loads at a time each
            takes `1 + σ (m - 1)` times as long as alone, so that k equal stages of a model that loads in T alone
            take `T (σ + (1 - σ) / k)`. Source: the form that explains Table 1 of the ICLR 2021 submission.
        thread_penalty: Further slow-down, as a share, once there are at least as many stages as threads.
            Source: the same paper states that it exists; its size is assumed.
    """

    threads: int
    serial_share: float = 0.0
    thread_penalty: float = 0.0

    def slowdown(self, num_stages: int) -> float:
        """Return how many times longer one load takes when `num_stages` stages load as the policy has it."""
        factor = 1.0 + self.serial_share * (min(num_stages, self.threads) - 1)
        return factor * (1.0 + self.thread_penalty) if num_stages >= self.threads > 1 else factor


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
        """Draw the schedule as text, a row for each thread: digits while a stage loads, letters while it infers.

        Stage 1 loads as `1` and infers as `a`; stages past the ninth share the sign `+`.
        """
        total_s = max((task.end_s for task in self.tasks), default=0.0)
        if total_s <= 0.0:
            return "(nothing ran)"
        rows: dict[tuple[str, int], list[str]] = {}
        for task in self.tasks:
            row = rows.setdefault((task.kind, task.thread), [" "] * width)
            first = min(width - 1, int(task.start_s / total_s * width))
            last = min(width, max(first + 1, round(task.end_s / total_s * width)))
            sign = "+" if task.stage > 8 else chr(ord("1" if task.kind == "load" else "a") + task.stage)
            row[first:last] = sign * (last - first)
        order = sorted(rows, key=lambda key: (key[0] == "infer", key[1]))
        lines = [
            f"{'load ' + str(thread) if kind == 'load' else 'infer':>8} |{''.join(rows[kind, thread])}|"
            for kind, thread in order
        ]
        lines.append(f"{'':8} 0{f'{total_s * 1e3:.1f} ms, {self.source}':>{width}}")
        return "\n".join(lines)


def simulate(
    load_s: Sequence[float],
    infer_s: Sequence[float],
    contention: Contention,
    source: Literal["simulated", "predicted"] = "simulated",
) -> Schedule:
    """Return the schedule of the execution policy for these stages (Algorithm 2, with half-open ranges).

    Loads start in stage order, each on the thread that is free first; stage i infers once it is loaded and stage
    i-1 has finished. With fewer stages than threads every load starts at once (case 1); otherwise the rest wait
    for a thread while loaded stages infer (case 2). Every load takes `contention.slowdown(k)` times its time alone.

    Args:
        load_s: Seconds each stage takes to load alone.
        infer_s: Seconds each stage's first inference takes.
        contention: Threads and their interference.
        source: What the durations are.
    """
    import heapq

    slowdown = contention.slowdown(len(load_s))
    free = [(0.0, thread) for thread in range(contention.threads)]
    tasks: list[Task] = []
    inferred_s = 0.0
    for stage, (load, infer) in enumerate(zip(load_s, infer_s, strict=True)):
        start_s, thread = heapq.heappop(free)
        loaded_s = start_s + load * slowdown
        heapq.heappush(free, (loaded_s, thread))
        tasks.append(Task(stage, "load", thread, start_s, loaded_s))
        start_s = max(loaded_s, inferred_s)
        inferred_s = start_s + infer
        tasks.append(Task(stage, "infer", 0, start_s, inferred_s))
    return Schedule(tuple(sorted(tasks, key=lambda task: (task.start_s, task.end_s))), source)
