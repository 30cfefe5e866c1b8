"""How much of a model may be in memory at a time, and what keeps it there: the ceiling of one loader.

Weights are mapped from files, and their pages are given back once a stage has run and others need the room; the
sessions stay as they are. What would be there twice, or not mapped, is left out under a ceiling: weights rearranged at
load or by the upgrade, weights read into memory, graphs that the runtime optimises at load.

Where the system has less memory than the model takes, in a small container for instance, it would cache the files of
stages that have run in the place of those that come next: a model that runs again and again would be read from storage
as a whole each time. So what leaves memory is forgotten there as well, what is needed next is read ahead, and what
stays within the ceiling is never read again.
"""

from __future__ import annotations

import math
import os
import weakref

from splitload.base.errors import BundleError, UsageError
from splitload.base.memory import left_bytes
from splitload.base.sizes import megabytes, read_residency
from splitload.bundle.manifest import StageEntry, Variant
from splitload.runtime import mapped, reading
from splitload.runtime.capi.elements import BY_TYPE
from splitload.runtime.ledger import Ledger
from splitload.runtime.pool import started
from splitload.runtime.session_pages import SessionPages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from splitload.runtime.engine import Engine
    from splitload.runtime.ledger import Run, Use
    from splitload.runtime.mapped import Span

ARENA_SHARE = 2.0  # of live tensors: what an arena takes at most, for pieces that nothing fits into and kernels' memory
_SLACK_BYTES = 32 << 20  # that a process takes besides
_IDLE_S = 5.0


class Needs:
    """What a variant takes in memory, in bytes.

    Attributes:
        weights: Of each stage, what a run reads.
        sessions: Of all sessions, beside weights.
        arena: Of the working memory of one run.
        is_known: Whether the bundle says all of it.
    """

    def __init__(self, variant: Variant) -> None:
        stages = variant.stages
        self.weights = [_weights_bytes(stage) for stage in stages]
        self.sessions = sum(stage.session_bytes or 0 for stage in stages)
        live = max((stage.working_bytes or 0) + (stage.passing_bytes or 0) for stage in stages)
        self.arena = math.ceil(ARENA_SHARE * live) if variant.arena_bytes is None else variant.arena_bytes
        self.is_known = all(stage.mapped_bytes is not None and stage.working_bytes is not None for stage in stages)

    @property
    def least(self) -> int:
        """The lowest ceiling that holds it."""
        return self.sessions + self.arena + max(self.weights)


def wanted(word: str | int | None, variant: Variant, *, specializes: bool = False) -> tuple[int | str | None, bool]:
    """Return how much of a variant may be in memory, and whether files that are read ahead push each other out of it.

    Args:
        word: What the caller says, see `ParallelLoader`; None for the bundle's execution scheme.
        variant: What runs.
        specializes: Whether a native variant is made in the background.

    Returns:
        A ceiling in bytes, "stage", or None for all; and under a ceiling `is_scarce`.

    Raises:
        UsageError: If that is no residency, this system cannot keep it, or the variant does not fit under it; the
            message says the least that would do.
    """
    if word is None:
        ceiling = variant.residency
    elif isinstance(word, str):
        try:
            ceiling = read_residency(word)
        except ValueError as error:
            raise UsageError(f"residency: {error}") from error
    elif isinstance(word, int) and not isinstance(word, bool) and word > 0:
        ceiling = word
    else:
        raise UsageError(f"residency takes 'all', 'stage', a size such as '48MB' or a count of bytes, not {word!r:.40}")
    if ceiling is None:
        return None, False
    mapped.check_system()
    if ceiling != "stage":
        _check(ceiling, variant)
    if specializes:
        raise UsageError("specialize='background' takes as much memory as the model; leave it or the ceiling out")
    return ceiling, is_scarce(variant)


def _check(ceiling: int, variant: Variant) -> None:
    """Raise `UsageError` unless a variant fits under a ceiling."""
    needs = Needs(variant)
    if not needs.is_known:
        native = " have 'splitload specialize' make native ones here," if variant.kind == "portable" else ""
        raise UsageError(
            f"the bundle does not say what its {variant.kind} stages take in memory; make it again by 'splitload train "
            f"--residency {_word(ceiling)}', which says what fits,{native} or give residency='stage'"
        )
    if needs.least > ceiling:
        largest = needs.weights.index(max(needs.weights))
        raise UsageError(
            f"residency {_word(ceiling)} is too low: stage {largest + 1}, '{variant.stages[largest].name}', has "
            f"{megabytes(needs.weights[largest])} of weights, a run takes {megabytes(needs.arena)} and the sessions "
            f"{megabytes(needs.sessions)}; the least that would do is {_word(needs.least, math.ceil)}, or make a "
            f"bundle of smaller stages by 'splitload train --residency {_word(ceiling)}'"
        )


def _word(size_bytes: int, rounded: Callable[[float], int] = math.floor) -> str:
    """Return a size as `--residency` takes it, at most as large unless it is rounded otherwise."""
    return f"{rounded(size_bytes / 1e5) / 10:g}MB" if size_bytes >= 1e5 else str(size_bytes)


def is_scarce(variant: Variant) -> bool:
    """Return whether the system leaves this process less memory than a variant and its cached files take."""
    needs, left = Needs(variant), left_bytes()
    return left is not None and left < sum(needs.weights) + needs.arena + needs.sessions + _SLACK_BYTES


class Residency:
    """Keeps the stages of one loader below a ceiling.

    Args:
        ceiling: In bytes, or "stage"; see `wanted`.
        variant: What runs.
        paths: The files that the session of each stage maps, the one with its graph first.
        engine: What runs it.

    Attributes:
        ledger: Who has which memory.
        is_scarce: Whether the system has less memory than the model takes.
    """

    def __init__(self, ceiling: int | str, variant: Variant, paths: Sequence[Sequence[str]], engine: Engine) -> None:
        self._ceiling, self._variant, self._paths, self._engine = ceiling, variant, paths, engine
        self._needs = needs = Needs(variant)
        self._pages = [SessionPages(files) for files in paths]
        self._tables: dict[int, Sequence[Span]] = {}  # each run maps a few rows of its own
        self._first: Callable[[], Any] = lambda: None  # a session, by which the arena is reached
        one_stage = ceiling == "stage"
        self.is_scarce = is_scarce(variant)
        self._reader_runs = False
        self.ledger = Ledger(
            needs.weights, math.inf if isinstance(ceiling, str) else ceiling - needs.sessions,
            drop=self._drop, shrink=self._shrink, one_stage=one_stage, alone=self._tables,
            renew=lambda index: self._pages[index].give_back(self._tables[index]),
        )  # fmt: skip

    def loading(self, index: int) -> Use:
        """Return a block in which a stage is loaded; see `Ledger.loading`."""
        return self.ledger.loading(index)

    def opened(self, index: int, open_session: Callable[[], Any]) -> Any:
        """Open the session of a stage, find what it has mapped, and return it.

        Raises:
            BundleError: If it has read its weights instead.
        """
        session = self._pages[index].open(open_session)
        if not self._pages[index].spans and self._needs.weights[index] > self._variant.stages[index].graph.bytes // 2:
            raise BundleError(
                f"this onnxruntime does not map '{os.path.basename(self._paths[index][0])}', so that its memory cannot "
                "be given back; leave out residency"
            )
        self._keep_table_apart(index)
        if self._first() is None:
            self._first = weakref.ref(session)
            self._reserve()
        return session

    def run(self, inputs: Mapping[str, Any]) -> Run:
        """Return a block in which a run goes through the stages; see `Ledger.run`.

        Args:
            inputs: Values in the engine's form; the working memory is taken to grow with their bytes.
        """
        if self.is_scarce and not self._reader_runs:
            import threading

            self._reader_runs = True
            if not started(threading.Thread(target=self._read_ahead, name="splitload-reader", daemon=True)):
                self._reader_runs = False
        usual = self._variant.input_bytes
        share = max(1.0, sum(map(self._bytes_of, inputs.values())) / usual) if usual else 1.0
        return self.ledger.run(math.ceil(share * self._needs.arena))

    def heir(self) -> Residency:
        """Return what takes its place in a forked child, where nothing is loaded."""
        self.ledger.forked()
        return Residency(self._ceiling, self._variant, self._paths, self._engine)

    def close(self) -> None:
        """Have who waits for room know that there will be none."""
        self.ledger.close()

    def _bytes_of(self, value: Any) -> int:
        kind, shape = self._engine.described(value) or ("", ())
        return math.prod(shape) * BY_TYPE[kind].item_bytes if kind in BY_TYPE else 0

    def _drop(self, index: int) -> None:
        self._pages[index].give_back(self._pages[index].spans)
        if self.is_scarce:
            mapped.forget(self._paths[index])

    def _reserve(self) -> None:
        """Have the arena begin with one piece: of many small ones it would keep what later tensors do not fit into."""
        live = max((stage.working_bytes or 0) + (stage.passing_bytes or 0) for stage in self._variant.stages)
        if live and (session := self._first()) is not None:
            self._engine.reserve(session, math.ceil(ARENA_SHARE * live))

    def _shrink(self) -> None:
        self._engine.empty_arena()
        self._reserve()

    def _keep_table_apart(self, index: int) -> None:
        """Have the rows of a large table come alone, and not with all of it."""
        path, start = self._paths[index][0], self._variant.stages[index].table_start
        if start is None:
            return
        weights, rows = self._pages[index].split(start)
        self._tables[index] = rows
        if self.is_scarce:
            mapped.in_small_pages(path, start, read=False)
            mapped.touch_at_random(rows)
            self._pages[index].spans = [*weights, *rows]  # which are apart now
        elif reading.is_cached(path, (os.path.getsize(path),)):
            mapped.in_small_pages(path, start, read=True)

    def _read_orders(self, index: int) -> list[tuple[str, tuple[int, ...]]]:
        """Return what is read ahead of a stage; of files of which it reads the smaller part only its graph."""
        order, paths = self._variant.stages[index].read_order, self._paths[index]
        if order:
            return [(path, order) for path in paths]
        sizes = [os.path.getsize(path) for path in paths]
        most = len(paths) if 2 * self._needs.weights[index] > sum(sizes) else 1  # rows of a table come when touched
        return [(path, (0, size)) for path, size in zip(paths[:most], sizes, strict=False)]

    def _read_ahead(self) -> None:
        """Read what is needed next, as long as there is room for it; ends when nothing has happened for a while."""
        try:
            while not self.ledger.is_closed:
                changed = self.ledger.changed()
                index = self.ledger.ahead()
                if index is not None:
                    reading.fetch(self._read_orders(index), lambda: self.ledger.is_closed)
                elif not changed.wait(_IDLE_S):
                    break
        except OSError:  # the run meets it
            pass
        finally:
            self._reader_runs = False


def _weights_bytes(stage: StageEntry) -> int:
    if stage.mapped_bytes is not None:
        return stage.mapped_bytes
    return stage.graph.bytes if stage.graph.name.endswith(".ort") else stage.weights_bytes
