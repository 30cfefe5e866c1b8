"""Which of the ready tasks is placed next, and where."""

from __future__ import annotations

import math
from collections.abc import Sequence

from splitload.crowd.entities import Stage
from splitload.crowd.mechanisms import Mechanisms
from splitload.crowd.placement import Placement, place
from splitload.crowd.progress import Progress
from splitload.crowd.roster import Roster


class Dispatch:
    """Goes through the stages that have ready tasks until no worker is open or all do better to wait.

    Tasks of a stage differ in their item alone, so that only the oldest of each stage is looked at, and that only if
    something has changed for the stage since its tasks were found to do better to wait. A task thus costs a look at the
    workers of two or three stages.
    """

    def __init__(self, stages: Sequence[Stage], mechanisms: Mechanisms, roster: Roster, progress: Progress) -> None:
        """Look at a roster and a progress that others change."""
        self._stages = range(len(stages))
        self._mechanisms = mechanisms
        self._roster = roster
        self._progress = progress
        self._due_s = [math.inf for _ in stages]  # when an idle worker may change to the stage
        self._seen_ready = tuple(0 for _ in stages)
        self._seen_needed: tuple[bool, ...] = ()
        self._found: dict[int, Placement] = {}

    @property
    def due_s(self) -> float:
        """Return when there may be a placement even if nothing happens before."""
        return min(self._due_s)

    def next(self, now_s: float) -> tuple[int, Placement] | None:
        """Return the stage whose oldest ready task is placed next; None if there is nothing to place.

        Of several stages, that goes first which gains most by not waiting, and of equals the last in the chain, since
        it brings items to their end. With strict tiers the best tier goes first.
        """
        self._look_for_changes(now_s)
        changed = self._roster.changed
        for stage in self._eligible():
            changed.discard(stage)
            self._found.pop(stage, None)
            placement = self._place(stage, now_s) if self._roster.is_open(stage) else None
            if placement is not None:
                self._found[stage] = placement
        if not self._found:
            return None
        stage = max(self._found, key=self._urgency)
        placement = self._found.pop(stage)
        changed.update(each for each, other in self._found.items() if other.seat.worker == placement.seat.worker)
        return stage, placement

    def _urgency(self, stage: int) -> tuple[float, int, int]:
        placement = self._found[stage]
        tiers = self._mechanisms.affinity == "tiers"
        return placement.gain_s, -placement.seat.tier if tiers else 0, stage

    def _look_for_changes(self, now_s: float) -> None:
        """Note the stages that time, items, or the end of others have changed."""
        changed, ready, needed = self._roster.changed, self._progress.ready, self._progress.needed()
        freed = needed != self._seen_needed
        for stage in self._stages:
            if self._due_s[stage] <= now_s:
                changed.add(stage)
                self._due_s[stage] = math.inf
            if ready[stage] > self._seen_ready[stage]:
                changed.add(stage)
            elif not ready[stage]:
                self._due_s[stage] = math.inf
                self._found.pop(stage, None)
                freed = freed or (bool(self._seen_ready[stage]) and self._roster.is_idle(stage))
        if freed:  # workers of a stage that has nothing for them may help elsewhere
            changed.update(self._stages)
        self._seen_ready, self._seen_needed = tuple(ready), needed

    def _eligible(self) -> list[int]:
        """Return the changed stages that have a ready task, with the barrier in mind."""
        first = len(self._stages)
        if not self._mechanisms.streaming:
            first = next((stage for stage, number in enumerate(self._progress.here) if number), 0)
        return [stage for stage in sorted(self._roster.changed) if stage <= first and self._progress.ready[stage]]

    def _place(self, stage: int, now_s: float) -> Placement | None:
        progress, roster = self._progress, self._roster
        item = progress.oldest(stage)
        to_come = progress.to_come(stage)
        ending = progress.to_come(len(self._stages)) <= len(roster.stations)
        left = progress.ready[stage] + to_come if ending else math.inf
        seats = roster.seats(stage, item.made.get(stage - 1), now_s, self._seen_needed, progress.ready, left)
        if item.attempts:
            seats = [seat for seat in seats if seat.worker not in item.attempts.values()]
        due_s = (seat.due_s for seat in seats if seat.open and seat.due_s > now_s)
        self._due_s[stage] = min(due_s, default=math.inf)
        share = roster.share(stage)
        ready = max(1.0, progress.ready[stage] * share)
        end_s = roster.end_s(now_s, [progress.to_come(each + 1) for each in self._stages])
        return place(seats, now_s, ready, to_come * share, self._mechanisms.affinity, end_s)
