"""How long a worker takes for a stage: a guess from its speed until it is measured."""

from __future__ import annotations

from collections.abc import Sequence

from splitload.crowd.entities import Measured, Stage, Worker

_NEWEST = 0.3  # the share of the newest measurement in the average
_LEAST_S = 1e-6


class Seconds:
    """What one worker is expected to take, learned while it runs.

    Each stage has an average of its own once it was measured. One that was not is guessed from the worker's speed, and
    that is learned from all stages: the worker's average ratio of guess to measurement.

    Attributes:
        speed: How many times faster than the worker that the stages' seconds are of.
    """

    def __init__(self, stages: Sequence[Stage], worker: Worker) -> None:
        """Begin with guesses."""
        self._stages = stages
        self._link_bytes_per_s = worker.link_bytes_per_s
        self.speed = worker.speed
        self._run_s: dict[int, float] = {}
        self._load_s: dict[int, float] = {}
        self._fetch_s_per_byte: float | None = None

    def is_measured(self, stage: int) -> bool:
        """Return whether the worker has run the stage."""
        return stage in self._run_s

    def run_s(self, stage: int) -> float:
        """Return the seconds one item takes."""
        known = self._run_s.get(stage)
        return max(self._stages[stage].run_s / self.speed if known is None else known, _LEAST_S)

    def load_s(self, stage: int) -> float:
        """Return the seconds from the worker's disk into its memory."""
        known = self._load_s.get(stage)
        return self._stages[stage].load_s / self.speed if known is None else known

    def fetch_s(self, stage: int) -> float:
        """Return the seconds the stage's files travel to the worker."""
        return self._travel_s(self._stages[stage].weights_bytes)

    def input_s(self, stage: int) -> float:
        """Return the seconds one item's output of the stage travels to the worker."""
        return self._travel_s(self._stages[stage].output_bytes)

    def _travel_s(self, num_bytes: int) -> float:
        if self._fetch_s_per_byte is not None:
            return num_bytes * self._fetch_s_per_byte
        return num_bytes / self._link_bytes_per_s

    def learn(self, stage: int, measured: Measured, *, ran: bool) -> None:
        """Take a measurement into the averages; `ran` says whether `measured.run_s` is one."""
        if ran:
            seconds = max(measured.run_s, _LEAST_S)
            speed = max(self._stages[stage].run_s, _LEAST_S) / seconds
            self.speed = _average(self.speed if self._run_s else None, speed)
            self._run_s[stage] = _average(self._run_s.get(stage), seconds)
        if measured.load_s is not None:
            self._load_s[stage] = _average(self._load_s.get(stage), measured.load_s)
        if measured.fetch_s is not None and self._stages[stage].weights_bytes:
            per_byte = measured.fetch_s / self._stages[stage].weights_bytes
            self._fetch_s_per_byte = _average(self._fetch_s_per_byte, per_byte)


def _average(known: float | None, newest: float) -> float:
    return newest if known is None else known + _NEWEST * (newest - known)
