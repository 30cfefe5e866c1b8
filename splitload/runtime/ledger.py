"""Accounts for the memory of one model under a ceiling: whose weights are in memory, who runs, who has to wait.

It knows no files and no pages: whoever asks for the weights of a stage is told when there is room for them, and what
has to leave is dropped before. Weights stay until others need their room. Then those leave whose next use is farthest
away, which no other rule betters (Belady, 1966): of a model that runs again and again some stages stay, and the others
take turns in what is left.

Who waits may be interrupted at any place, see `pool.py`.
"""

from __future__ import annotations

import _thread

from splitload.base.errors import StageError, UsageError
from splitload.base.sizes import megabytes
from splitload.runtime.pool import Latch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence


class Ledger:
    """The weights of the stages of one model, and the working memory of those who run it.

    At every moment the weights that are in memory and the working memory take `room_bytes` at most. Working memory is
    kept by the runtime when a run has ended, so that the most that was taken at a time counts until `shrink` is called.

    Args:
        sizes_bytes: Of the weights of each stage, in the order in which they run; each fits beside the working memory
            of one run.
        room_bytes: Of all; infinite where only the number of stages counts.
        one_stage: Whether weights of one stage at a time are used; those of the next one may be read meanwhile.
        drop: Has the weights of a stage leave memory.
        shrink: Has the runtime give back what it keeps of working memory, while nobody runs.
        alone: Stages that are used by one at a time, as each use brings other weights of them.
        renew: Has what the use before has brought of such a stage leave memory.
    """

    def __init__(
        self,
        sizes_bytes: Sequence[int],
        room_bytes: float,
        *,
        drop: Callable[[int], None],
        shrink: Callable[[], None] = lambda: None,
        one_stage: bool = False,
        alone: Container[int] = (),
        renew: Callable[[int], None] = lambda stage: None,
    ) -> None:
        self._sizes, self._room, self._one_stage = sizes_bytes, room_bytes, one_stage
        self._largest = max(sizes_bytes)
        self._drop, self._shrink = drop, shrink
        self._alone, self._renew = alone, renew
        self._lock = _thread.allocate_lock()
        self._waiting: list[Latch] = []
        self._takers: list[Run | Use] = []  # who needs room for weights to run, in the order they came
        self._loaders: list[Run | Use] = []  # and to load, in whatever order
        self._comers: list[Run | Use] = []  # who waits to run; a run that has begun never waits for them
        self._resident: set[int] = set()
        self._loaded: set[int] = set()
        self._uses: set[Use] = set()
        self._runs: set[Run] = set()
        self._held_bytes = 0.0  # of working memory
        self._is_closed = False

    @property
    def resident(self) -> frozenset[int]:
        """The stages whose weights are, or come to be, in memory."""
        with self._lock:
            return frozenset(self._resident)

    def run(self, working_bytes: int) -> Run:
        """Return a block in which a run goes through the stages; it begins when there is room for it.

        Args:
            working_bytes: What it takes besides weights.

        Raises:
            UsageError: When it begins, if there never will be.
            StageError: When it begins, if this was closed.
        """
        return Run(self, working_bytes)

    def loading(self, stage: int) -> Use:
        """Return a block in which a stage is loaded, which touches its weights.

        While a run goes on through loaded stages it waits until nothing that is needed sooner has to leave for it: what
        is loaded is run next, and so read once. Where all runs wait for stages to be loaded, anything leaves.
        """
        return Use(self, stage, None)

    def ahead(self) -> int | None:
        """Return the stage whose weights had better be read now, which count as in memory from now on.

        That is the one that runs next; None where it is there, or where there is no room for it but that of stages
        which are needed sooner. Those after it are not read yet: what stays in their room need not be read at all.
        """
        with self._lock:
            if self._is_closed or self._takers:  # who waits for room has it first
                return None
            missing = [stage for stage in range(len(self._sizes)) if stage not in self._resident]
            stage = min(missing, key=self._distance, default=None)
            if stage is None or (distance := self._distance(stage)) > 1 or not self._bring(stage, distance):
                return None
            return stage

    def changed(self) -> Latch:
        """Return a latch that is set once anything has changed."""
        latch = Latch()
        with self._lock:
            if self._is_closed:
                latch.set()
            self._waiting.append(latch)
        return latch

    @property
    def is_closed(self) -> bool:
        """Whether nobody may begin anything more."""
        return self._is_closed

    def close(self) -> None:
        """Have all who wait, or come, find that it is closed."""
        self._is_closed = True
        with self._lock:
            self._tell()

    def forked(self) -> None:
        """Have a forked child, where nobody runs by this one, wait for no thread of the parent's that has its lock."""
        self._lock = _thread.allocate_lock()

    def _until(self, waiter: Run | Use, attempt: Callable[[bool], bool], queue: list[Run | Use]) -> None:
        """Wait until an attempt succeeds; who is interrupted has to call `_end`.

        Args:
            waiter: Who waits.
            attempt: Called with the lock held, and with whether all who came before have what they wait for.
            queue: Where who does not succeed at once stands.

        Raises:
            StageError: If this is closed.
        """
        while True:
            with self._lock:
                if self._is_closed:
                    raise StageError("the model was closed")
                if attempt(not queue or queue[0] is waiter):
                    if waiter in queue:
                        queue.remove(waiter)
                        self._tell()
                    return
                if waiter not in queue:
                    queue.append(waiter)
                latch = Latch()
                self._waiting.append(latch)
            latch.wait()

    def _end(self, waiter: Run | Use) -> None:
        """Have who waits or has something wait no more and have nothing; once or again."""
        with self._lock:
            for queue in (self._takers, self._loaders, self._comers):
                queue[:] = [each for each in queue if waiter not in (each, getattr(each, "run", None))]
            if isinstance(waiter, Run):
                self._runs.discard(waiter)
                self._uses -= {use for use in self._uses if use.run is waiter}
            elif waiter in self._uses:
                self._uses.discard(waiter)
                if waiter.run is None:
                    self._loaded.add(waiter.stage)
                else:
                    waiter.run.stage = waiter.stage + 1
            self._tell()

    def _tell(self) -> None:
        """Wake who waits; the caller holds the lock."""
        for latch in self._waiting:
            latch.set()
        self._waiting.clear()

    def _begin(self, run: Run) -> bool:
        """Let a run begin if there is room for it beside the largest stage; the caller holds the lock."""
        taken = run.working_bytes + sum(each.working_bytes for each in self._runs)
        if not self._runs and max(taken, self._held_bytes) + self._largest > self._room:
            if taken + self._largest > self._room:
                raise UsageError(
                    f"a run on these inputs takes {megabytes(taken)} beside the {megabytes(self._largest)} of the "
                    f"largest stage, the ceiling leaves {megabytes(self._room)}; give smaller inputs or more residency"
                )
            self._shrink()
            self._held_bytes = 0.0
        held = max(taken, self._held_bytes)
        if held + self._largest > self._room or not self._make_room(self._room - held):
            return False
        self._held_bytes = held
        self._runs.add(run)
        return True

    def _take(self, use: Use, may_bring: bool) -> bool:
        """Use the weights of a stage if they are in memory, or there is room for them; the caller holds the lock."""
        stage = use.stage
        if self._one_stage and any(each.stage != stage for each in self._uses):
            return False
        if stage in self._alone and self._is_used(stage):
            return False
        is_patient = use.run is None and any(run.stage in self._loaded for run in self._runs)
        distance = self._distance(stage) if is_patient else -1
        if stage not in self._resident and not (may_bring and self._bring(stage, distance)):
            return False
        if self._one_stage:
            for each in self._resident - {stage}:
                self._evict(each)
        if stage in self._alone:
            self._renew(stage)
        self._uses.add(use)
        self._tell()  # the reader: another stage is next
        return True

    def _bring(self, stage: int, distance: float = -1) -> bool:
        """Count the weights of a stage as in memory, if those whose next use is farther away make room for them."""
        if not self._make_room(self._room - self._held_bytes - self._sizes[stage], distance):
            return False
        self._resident.add(stage)
        return True

    def _make_room(self, most_bytes: float, distance: float = -1) -> bool:
        """Have weights leave until those in memory take so many bytes; nothing leaves where that cannot be.

        Args:
            most_bytes: What may stay.
            distance: Only those leave whose next use is farther away than this.
        """
        leaving, used = [], sum(self._sizes[each] for each in self._resident)
        if used > most_bytes:
            idle = [each for each in self._resident if not self._is_used(each) and self._distance(each) > distance]
            for each in sorted(idle, key=self._distance, reverse=True):
                leaving.append(each)
                used -= self._sizes[each]
                if used <= most_bytes:
                    break
        if used > most_bytes:
            return False
        for each in leaving:
            self._evict(each)
        return True

    def _is_used(self, stage: int) -> bool:
        return any(use.stage == stage for use in self._uses)

    def _evict(self, stage: int) -> None:
        if stage in self._resident:
            self._drop(stage)  # before it counts no more
            self._resident.discard(stage)

    def _distance(self, stage: int) -> int:
        """Return how many stages run before a stage does, as far as is known: another run may follow each."""
        count = len(self._sizes)
        places = [run.stage for run in self._runs] or [0]
        return min((stage - place) % count for place in places)


class Run:
    """One run of the model; see `Ledger.run`."""

    def __init__(self, ledger: Ledger, working_bytes: int) -> None:
        self.working_bytes = working_bytes
        self.stage = 0  # which it uses, waits for or will use next
        self._ledger = ledger

    def __enter__(self) -> Run:
        self._ledger._until(self, lambda is_first: is_first and self._ledger._begin(self), self._ledger._comers)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End it, with what it uses; once or again: an interrupt may have left the block before."""
        self._ledger._end(self)

    def using(self, stage: int) -> Use:
        """Return a block in which the weights of a stage stay in memory; it begins when there is room for them."""
        with self._ledger._lock:
            self.stage = stage
            self._ledger._tell()  # who loads: the run may have left stages out, and wait for this one
        return Use(self._ledger, stage, self)


class Use:
    """The use of a stage's weights; see `Run.using` and `Ledger.loading`."""

    def __init__(self, ledger: Ledger, stage: int, run: Run | None) -> None:
        self.stage, self.run, self._ledger = stage, run, ledger

    def __enter__(self) -> None:
        ledger = self._ledger
        if self.run is None:
            ledger._until(self, lambda _: ledger._take(self, not ledger._takers), ledger._loaders)
        else:
            ledger._until(self, lambda is_first: ledger._take(self, is_first), ledger._takers)

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """See `Run.end`."""
        self._ledger._end(self)
