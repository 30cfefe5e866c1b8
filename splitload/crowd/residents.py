"""The stages that a worker holds in memory: one, unless it is told otherwise; opened from its cache, and run."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from splitload.base.errors import StageError
from splitload.bundle.manifest import TensorSpec
from splitload.crowd.codec import Buffer, EdgeCodec, Encoded, decoded, encoded, parcel
from splitload.crowd.orders import StageOrder, TaskOrder
from splitload.crowd.process_memory import drop_code
from splitload.deploy.stage_cache import StageCache
from splitload.runtime import mapped
from splitload.runtime.capi.memory import Memory, memory_of
from splitload.runtime.capi.tensor import tensor_of
from splitload.runtime.engine import chosen
from splitload.runtime.options import CallerOptions
from splitload.runtime.session_pages import SessionPages

if TYPE_CHECKING:
    from splitload.runtime.engine import Engine


class Residents:
    """Sessions on stages. Whoever opens one has the others leave memory first; who opens and runs does so in his turn.

    Attributes:
        most: The most stages that were in memory at a time.

    Args:
        cache: Where their files are.
    """

    def __init__(self, cache: StageCache) -> None:
        self.most = 0
        self._cache = cache
        self._sessions: dict[str, Any] = {}
        self._keep: dict[str, bool] = {}
        self._users: dict[str, set[str]] = {}  # names of the crowds that have opened a stage
        self._left: set[str] = set()  # of those that are gone, and whose stages are to leave memory
        self._tables: dict[str, list[tuple[int, int]]] = {}  # where the tables of stages are mapped
        self._codecs: dict[tuple[str, str], EdgeCodec] = {}
        self._pages: dict[str, SessionPages] = {}  # of the stages with a table
        self._engine: Engine | None = None
        self._lock = threading.RLock()

    def keys(self) -> list[str]:
        """Return the keys of the stages in memory."""
        return list(self._sessions)

    @property
    def engine(self) -> Engine:
        """What opens and runs stages; the runtime's library is opened with the first use."""
        if self._engine is None:
            self._engine, _ = chosen("auto", None, CallerOptions(), None)
        return self._engine

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let nobody else open, run or drop a stage while the block runs."""
        try:
            with self._lock:
                yield
        finally:
            self._drop_left()

    def part_from(self, crowd: str) -> None:
        """Have the stages that no other crowd has opened leave memory: now, or after the turn that somebody has."""
        self._left.add(crowd)
        self._drop_left()

    def open(self, order: TaskOrder) -> float | None:
        """Have a stage in memory, and no other one unless the order allows it.

        Returns:
            The seconds that it took, letting go of others included; None where it was there.

        Raises:
            MissingFileError: If its files are missing or damaged.
            StageError: If the runtime cannot open it.
            OutputError: If its folder cannot be made.
        """
        stage = order.stage
        with self._lock:
            start_s = time.perf_counter()
            others = [key for key in self._sessions if key != stage.key and (order.alone or key in order.unload)]
            for key in others:
                self._let_go(key)
            if stage.key in self._sessions:
                self._users[stage.key].add(order.crowd)
                return None
            if order.alone and self._sessions:
                raise AssertionError(f"{len(self._sessions)} stages are in memory where one is allowed")
            self._sessions[stage.key] = self._session(stage)
            self._keep[stage.key] = order.keep
            self._users[stage.key] = {order.crowd}
            self.most = max(self.most, len(self._sessions))
            return time.perf_counter() - start_s

    def run(self, order: TaskOrder, tensors: Mapping[str, Buffer]) -> tuple[bytes, int]:
        """Run a stage that is in memory.

        Args:
            order: Which one.
            tensors: What it reads, among others, as it travelled.

        Returns:
            The parcel of what later stages read, and how many bytes compressing has saved of it.

        Raises:
            StageError: If the runtime cannot run it on these tensors.
        """
        stage = order.stage
        with self._lock:
            engine = self.engine
            specs = {spec.name: spec for spec in stage.outputs}
            feeds = {
                name: engine.value(None, tensor_of(decoded(tensors[name]))) for name in stage.inputs if name in tensors
            }
            boundaries = engine.boundaries(set())
            try:
                values = engine.run_stage(
                    self._sessions[stage.key], stage, list(order.needed), feeds, None, keep=False, boundaries=boundaries
                )
            except Exception as error:  # onnxruntime has no common root for its errors
                raise StageError(f"stage '{stage.name}' does not run: {' '.join(str(error).split())}") from error
            finally:
                self.after_run(stage.key)
            made: dict[str, Buffer | Encoded] = {name: tensors[name] for name in order.carried if name in tensors}
            saved_bytes = 0
            for name, value in zip(order.needed, values, strict=True):
                memory = memory_of(engine.answer(value))
                sent = encoded(memory, compress=self._compresses(order, specs[name], memory))
                made[name] = sent
                saved_bytes += sent.saved_bytes
            return parcel(made), saved_bytes

    def after_run(self, key: str) -> None:
        """Have the rows of a table leave memory that a run has looked up: the next one looks up others."""
        if key in self._pages:
            self._pages[key].give_back(self._tables[key])

    def let_go_all(self) -> None:
        """Have all stages leave memory as the worker ends; one that still runs leaves it with the process."""
        if self._lock.acquire(blocking=False):
            try:
                for key in list(self._sessions):
                    self._let_go(key)
            finally:
                self._lock.release()

    def _drop_left(self) -> None:
        """Have the stages of crowds that are gone leave memory, unless somebody has his turn, who does it after."""
        while self._left and self._lock.acquire(blocking=False):
            try:
                while self._left:
                    crowd = self._left.pop()
                    for key, users in list(self._users.items()):
                        users.discard(crowd)
                        if not users:
                            self._let_go(key)
            finally:
                self._lock.release()

    def _session(self, stage: StageOrder) -> Any:
        self._cache.request(stage.key, stage.files)  # which keeps it until it is let go
        try:
            graph = str(self._cache.place(stage.key, stage.files) / stage.graph)
            start = stage.table_start if sys.platform.startswith("linux") else None

            def opened() -> Any:
                return self.engine.open(
                    graph, prepack=stage.prepack, mapped=stage.mapped, optimize=stage.optimize,
                    background=False, share_memory=True,
                )  # fmt: skip

            try:
                if start is None:
                    session = opened()
                else:
                    mapped.in_small_pages(graph, start, read=True)
                    pages = SessionPages([graph])
                    session = pages.open(opened)
                    self._pages[stage.key], (_, self._tables[stage.key]) = pages, pages.split(start)
            except Exception as error:  # as above
                raise StageError(f"stage '{stage.name}' cannot be opened: {' '.join(str(error).split())}") from error
            drop_code()
            return session
        except BaseException:
            self._cache.release(stage.key)
            raise

    def _let_go(self, key: str) -> None:
        """Have a stage leave memory: the session, its mapped pages and what it worked in."""
        del self._sessions[key], self._users[key]
        self._tables.pop(key, None)
        self.engine.empty_arena()
        self._pages.pop(key, None)
        self._cache.release(key)
        if not self._keep.pop(key):
            self._cache.remove(key)

    def _compresses(self, order: TaskOrder, spec: TensorSpec, memory: Memory) -> bool:
        if order.compression != "auto":
            return order.compression == "always"
        codec = self._codecs.setdefault((order.stage.key, spec.name), EdgeCodec())
        return codec.pays(memory, order.link_bytes_per_s)
