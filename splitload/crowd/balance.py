"""Whether a stage has its share of the crowd: as many items a second as the other stages could do."""

from __future__ import annotations

from splitload.crowd.station import Station

_ROUNDING = 1e-9


class Balance:
    """The rate of each stage beside that of a crowd in balance.

    A worker that did the whole model by itself, loads apart, would do 1 / (sum of its seconds of all stages) items a
    second. A crowd cannot do more than all its workers together do so; in balance every stage does that much. Workers
    of one speed come out in proportion to the seconds of the stages.
    """

    def __init__(self, num_stages: int) -> None:
        """Begin without workers."""
        self._stages = range(num_stages)
        self._alone: dict[str, float] = {}
        self._held: dict[str, dict[int, float]] = {}
        self._total = 0.0
        self._rates = [0.0] * num_stages

    def update(self, station: Station) -> None:
        """Count a worker as it is now: what it holds and how long it takes; one that hangs counts nothing."""
        self.remove(station.worker.name)
        if station.hangs:
            return
        seconds = station.seconds
        alone = 1.0 / sum(seconds.run_s(stage) for stage in self._stages)
        held = {stage: 1.0 / seconds.run_s(stage) for stage in station.resident}
        self._alone[station.worker.name], self._held[station.worker.name] = alone, held
        self._total += alone
        for stage, rate in held.items():
            self._rates[stage] += rate

    def remove(self, name: str) -> None:
        """Count a worker no more."""
        self._total -= self._alone.pop(name, 0.0)
        for stage, rate in self._held.pop(name, {}).items():
            self._rates[stage] -= rate

    @property
    def items_per_s(self) -> float:
        """Return the rate of the whole crowd in balance."""
        return max(self._total, 0.0)

    def has_enough(self, stage: int, without: Station | None = None) -> bool:
        """Return whether the holders of a stage, one of them perhaps left out, keep up with a crowd in balance."""
        rate = self._rates[stage]
        if without is not None:
            rate -= self._held.get(without.worker.name, {}).get(stage, 0.0)
        return rate >= self._total * (1.0 - _ROUNDING)
