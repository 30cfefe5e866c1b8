"""What a loader opens: a bundle, the files of its stages, read ahead or not, and sessions on them."""

from __future__ import annotations

import os
import sys

from splitload.base.errors import BundleError, UsageError
from splitload.base.record import Record
from splitload.bundle.manifest import DEFAULT_TAIL, Manifest, StageEntry, Variant, without_tail
from splitload.bundle.read import Verify, read_manifest
from splitload.runtime import reading
from splitload.runtime.pool import SHARED, started

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from typing import Any

    from splitload.base.regular import StrPath
    from splitload.bundle.tails import Tail
    from splitload.runtime.engine import Engine
    from splitload.runtime.ordered import Pool

HAND_OVER_S = 0.001  # a caller that asks within it loads the only stage itself: faster than on another thread


def _opened(open_session: Callable[..., Any], *values: Any, **named: Any) -> Any:
    return open_session(*values, **named)


class LoadingParts(Record):
    """What a loader does not do itself; whoever wants to see or replace it hands in something else.

    Attributes:
        pool: Runs the loads, see `LoadingPool`.
        open_session: Makes a session on a file: called with what makes it, `Engine.open`, and with its arguments.
        is_cached: Tells whether a file is in memory, see `reading.is_cached`.
        fetch: Reads files in the order of their use, see `reading.fetch`.
        read_ahead: Reads a whole file, see `reading.read_ahead`.
        start: Starts a thread that reads, and returns whether the system had one left, see `pool.started`.
        hand_over_s: How long the pool leaves the only stage of a model to who asks for it.
    """

    pool: Pool = SHARED
    open_session: Callable[..., Any] = _opened
    is_cached: Callable[..., bool] = reading.is_cached
    fetch: Callable[..., object] = reading.fetch
    read_ahead: Callable[..., object] = reading.read_ahead
    start: Callable[[threading.Thread], bool] = started
    hand_over_s: float = HAND_OVER_S


def contents(
    bundle: str | os.PathLike[str], verify: Verify, tail: str | None, *, frozen_only: bool
) -> tuple[Manifest, Tail | None]:
    """Return what a bundle says, and its personalized last stage where one is asked for; see `ParallelLoader`.

    Raises:
        BundleError: If the bundle is incomplete or damaged.
        UsageError: If it has no such tail, or `frozen_only` is asked of one without trainable layers.
    """
    folder = os.path.realpath(bundle)
    manifest = read_manifest(folder, verify)
    if frozen_only:
        return without_tail(manifest), None
    if tail is not None and manifest.training is not None:
        from pathlib import Path

        from splitload.bundle.tails import check_known, open_tail  # for the bundles that have one

        check_known(Path(folder), tail)
        return manifest, open_tail(Path(folder), tail, manifest.variants[-1].stages[-1], verify=verify)
    if tail not in (None, DEFAULT_TAIL):
        raise UsageError(f"'{bundle}' has no trainable stage, and so no tail '{tail}'")
    return manifest, None


class StageFiles:
    """The files of a bundle's stages, and what is read of them before a session needs it.

    Attributes:
        folder: Where they lie, but for a personalized last stage.
        are_fetched: Whether one thread reads all that have a `read_order`.

    Args:
        folder: The bundle.
        tail: Its personalized last stage, or None.
        parts: What reads.
    """

    def __init__(self, folder: StrPath, tail: Tail | None, parts: LoadingParts) -> None:
        self.folder = folder
        self.are_fetched = False
        self._tail, self._parts = tail, parts
        self._read: Variant | None = None

    def path(self, stage: StageEntry) -> str:
        """Return the graph file that is loaded for a stage."""
        if self._tail is not None and stage.trainable:
            return os.fspath(self._tail.graph)
        return os.path.join(self.folder, stage.graph.name)

    def mapped_by(self, stage: StageEntry) -> list[str]:
        """Return the files that a session on a stage maps, that of its graph first."""
        graph = self.path(stage)
        names = (*(() if stage.weights is None else (stage.weights.name,)), *stage.shares)
        folders = (os.path.dirname(graph), self.folder)  # a personalized stage has its weights beside it
        found = (
            next((path for folder in folders if os.path.exists(path := os.path.join(folder, name))), "")
            for name in names
        )
        return [graph, *filter(None, found)]

    def read(self, variant: Variant) -> None:
        """Begin to read a variant, perhaps before onnxruntime is imported; what was fetched of another one stops."""
        self._read = variant
        self.are_fetched = False
        files = [(self.path(stage), stage.read_order) for stage in variant.stages if stage.read_order]
        if not all(self._parts.is_cached(*file) for file in files):
            import threading  # the first answer does not wait for it where nothing has to be read

            def stopped() -> bool:
                return self._read is not variant

            fetcher = threading.Thread(target=self._parts.fetch, args=(files, stopped), daemon=True)
            self.are_fetched = self._parts.start(fetcher)
        elif "onnxruntime" not in sys.modules:
            for stage in variant.stages:
                if stage.prefetch:
                    self._read_ahead(self.path(stage))

    def stop(self) -> None:
        """Fetch no more: nobody will ask for it."""
        self._read = None

    def about_to_load(self, stage: StageEntry) -> str:
        """Return the file of a stage that is loaded now, and read it ahead where its entry says so and nobody has."""
        path = self.path(stage)
        if stage.prefetch and not (self.are_fetched and stage.read_order):
            self._read_ahead(path)
        return path

    def _read_ahead(self, path: str) -> None:
        import threading

        self._parts.start(threading.Thread(target=self._parts.read_ahead, args=(path,), daemon=True))


class StageOpener:
    """Makes sessions on stages, in the way that their entries say.

    Args:
        files: Where the stages lie.
        engine: What makes them.
        parts: What stands between.
        share_memory: Whether working memory comes from the arena of all stages.
        keep_mapped: Whether all weights stay mapped as they are in the files, whatever the entries say.
    """

    def __init__(
        self, files: StageFiles, engine: Engine, parts: LoadingParts, *, share_memory: bool, keep_mapped: bool = False
    ) -> None:
        self._files, self._engine, self._parts, self._share_memory = files, engine, parts, share_memory
        self._keep_mapped = keep_mapped

    def first(self, stage: StageEntry) -> Any:
        """Return the session on a stage that answers first."""
        if self._keep_mapped:
            return self._open(self._files.path(stage), stage, prepack=False, background=False)
        return self._open(self._files.about_to_load(stage), stage, prepack=stage.prepack, background=False)

    def faster(self, stage: StageEntry) -> Any:
        """Return one with weights rearranged for speed, made at low priority, which the calling thread keeps.

        Where the runtime optimises the graph as well, the priority is the usual one: the first session takes up to
        twice as long to answer, and a process that infers all the time would put a better one off for many answers.
        """
        return self._open(self._files.path(stage), stage, prepack=True, background=not stage.reoptimize)

    def _open(self, path: str, stage: StageEntry, *, prepack: bool, background: bool) -> Any:
        try:
            made = self._parts.open_session(
                self._engine.open,
                path,
                prepack=prepack,
                mapped=stage.mapped or self._keep_mapped,
                optimize=stage.optimizes(prepack) and not self._keep_mapped,
                background=background,
                share_memory=self._share_memory,
            )
        except Exception as error:
            if os.path.exists(path):
                raise
            raise BundleError(f"'{path}' is missing; copy the bundle again") from error  # the runtime has other words
        reads, gives = self._engine.names(made)
        if not (reads <= set(stage.inputs) and gives >= {spec.name for spec in stage.outputs}):
            del made  # the error, with its traceback, would keep it
            # sizes do not tell, and a run would blame the caller
            raise BundleError(f"'{path}' does not hold the stage that the manifest says; copy the bundle again")
        return made
