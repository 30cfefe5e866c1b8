"""How long a worker takes for a stage: a guess from its speed until it is measured."""

from __future__ import annotations

from collections.abc import Sequence

from splitload.crowd.entities import Measured, Stage, Worker

_NEWEST = 0.3  # the share of the newest measurement in the average
_LEAST_S = 1e-6


class Seconds:
    """What one worker is expected to take, learned while it runs.

    Each stage has an average of its own once it was measured. One that was not is guessed from the worker's speed, and
    that is learned from all stages: the worker's average ratio of guess to measurement. Loading has a ratio of its own:
    disks are not fast where processors are.

    Attributes:
        speed: How many times faster than the worker that the stages' seconds are of.
    """

    def __init__(self, stages: Sequence[Stage], worker: Worker) -> None:
        """Begin with guesses, and with what the worker remembers."""
        self._stages = stages
        self._link_bytes_per_s = worker.link_bytes_per_s
        self.speed = worker.speed
        self._load_speed: float | None = None
        self._run_s: dict[int, float] = {}
        self._load_s: dict[int, float] = {}
        self._fetch_s_per_byte: float | None = None
        for stage, measured in worker.measured.items():
            self.learn(stage, measured, ran=True)

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
        return self._stages[stage].load_s / (self._load_speed or self.speed) if known is None else known

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
            self.speed = average(self.speed if self._run_s else None, speed)
            self._run_s[stage] = average(self._run_s.get(stage), seconds)
        if measured.load_s is not None:
            loaded_s = max(measured.load_s, _LEAST_S)
            self._load_speed = average(self._load_speed, max(self._stages[stage].load_s, _LEAST_S) / loaded_s)
            self._load_s[stage] = average(self._load_s.get(stage), loaded_s)
        if measured.fetch_s is not None and self._stages[stage].weights_bytes:
            per_byte = measured.fetch_s / self._stages[stage].weights_bytes
            self._fetch_s_per_byte = average(self._fetch_s_per_byte, per_byte)


def average(known: float | None, newest: float) -> float:
    """Return the running average of measurements with one more."""
    return newest if known is None else known + _NEWEST * (newest - known)
