"""What a Dask worker of a crowd does: keep stages on disk and one in memory, run tasks on it, tell what they took.

Dask carries the tasks, and the tensors from worker to worker. Stages travel by what this adds to a worker: it takes a
file in pieces from a client, or fetches it from a worker that has it. Neither numpy nor onnxruntime's Python module is
imported where the C library runs the stages.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import dask
from distributed import Worker, WorkerPlugin, get_worker
from distributed.protocol import to_serialize

from splitload import __version__
from splitload.base.errors import OutputError, SplitloadError, StageError
from splitload.base.machine import cpu_architecture, return_memory
from splitload.bundle.manifest import File
from splitload.crowd.beside import begun
from splitload.crowd.codec import Buffer, opened
from splitload.crowd.orders import PIECE_BYTES, PLUGIN, TaskOrder, key_of, read, topic
from splitload.crowd.process_memory import MemoryMeter, return_early
from splitload.crowd.residents import Residents
from splitload.crowd.seconds import average
from splitload.crowd.settings import CACHE_BYTES, CACHE_FOLDER, DEFAULT_CACHE_BYTES
from splitload.deploy.stage_cache import MissingFileError, StageCache

_GIVE_S, _LOOK_EVERY_S = 1.0, 0.002
_BEFORE_S = 2.0  # how long a piece of a file waits for the one before, which was sent before it
_MOST_CLAIMS = 1024
_MOST_REMEMBERED = 256  # stages whose seconds are kept for the next crowd
_MOST_INPUTS = 64  # that clients have put here
_FULL_S, _FULL_EVERY_S = 15.0, 0.2  # longer than the uses of a client last that was killed
_SILENT_S, _SILENT_ASKS = 10.0, 4  # a client that was not heard of for so long, or as many of its pauses, is gone


class MissingInputError(StageError):
    """The input of a task cannot be had."""


class StageWorker(WorkerPlugin):  # type: ignore[misc]
    """The worker plugin; the folder and size of its cache are Dask's settings `CACHE_FOLDER` and `CACHE_BYTES`.

    Attributes:
        meter: The worker's memory.
        cache: The stages on its disk.
        residents: The stages in its memory.
        inputs: Parcels that a client has put here, by crowd and attempt.
        claims: Dask's keys of the tasks that have begun, or were withdrawn.
        seconds: Of stages that were run here, by their keys: of loading one, and of running it.
        gone_s: When a crowd counts as gone, of `time.perf_counter`, by its name: its client was killed, or cut off.
    """

    name = PLUGIN

    def setup(self, worker: Worker) -> None:
        """Begin; Dask calls it once the worker is there."""
        self._worker = worker
        self.inputs: dict[tuple[str, int], bytes] = {}
        self.claims = Claims()
        self.seconds: dict[str, tuple[float | None, float]] = {}
        folder = dask.config.get(CACHE_FOLDER, None) or str(Path(worker.local_directory) / "stages")
        return_early()
        return_memory()
        self.meter = MemoryMeter()
        self.cache = StageCache(Path(folder), dask.config.get(CACHE_BYTES, DEFAULT_CACHE_BYTES))
        self.residents = Residents(self.cache)
        self.gone_s: dict[str, float] = {}
        self._watch = asyncio.ensure_future(self._watch_clients())
        worker.handlers.update(
            splitload_hello=self.hello,
            splitload_introduce=self.introduce,
            splitload_request=self.request,
            splitload_write=self.write,
            splitload_read=self.read,
            splitload_fetch=self.fetch,
            splitload_release=self.release,
            splitload_put=self.put,
            splitload_take=self.take,
            splitload_drop=self.drop,
            splitload_give=self.give,
            splitload_rest=self.rest,
        )

    def teardown(self, worker: Worker) -> None:
        """End; Dask calls it before the worker does."""
        self._watch.cancel()
        self.residents.let_go_all()
        self.cache.close()

    def hear(self, crowd: str, every_s: float = 0.0) -> None:
        """Note that a crowd is there, whose client asks in such a pause."""
        gone_s = time.perf_counter() + max(_SILENT_S, _SILENT_ASKS * every_s)
        self.gone_s[crowd] = max(gone_s, self.gone_s.get(crowd, 0.0))

    async def hello(self, crowd: str, every_s: float) -> dict[str, Any]:
        """Tell what this worker is, and how it is; a client asks often, and says in which pause."""
        self.hear(crowd, every_s)
        return {
            "clock_s": time.perf_counter(),
            "cpu_s": time.process_time(),
            "memory_bytes": self._worker.memory_manager.memory_limit or None,
            "idle_bytes": self.meter.idle_bytes,
            "peak_bytes": self.meter.peak_bytes(),
            "most_resident": self.residents.most,
            "resident": self.residents.keys(),
            "cached": self.cache.stages(),
            "seconds": dict(self.seconds),
        }

    def remember(self, key: str, load_s: float | None, run_s: float) -> None:
        """Keep what a task has taken for the next crowd; `load_s` is None where the stage was in memory."""
        known_load_s, known_run_s = self.seconds.pop(key, (None, None))
        load_s = known_load_s if load_s is None else average(known_load_s, load_s)
        while len(self.seconds) >= _MOST_REMEMBERED:
            del self.seconds[next(iter(self.seconds))]
        self.seconds[key] = load_s, average(known_run_s, run_s)

    async def introduce(self) -> dict[str, Any]:
        """Tell what this worker runs stages by."""
        engine = await asyncio.to_thread(lambda: self.residents.engine)
        return {
            "name": str(self._worker.name),
            "cpu": cpu_architecture(),
            "runtime": engine.version,
            "engine": engine.name,
            "splitload": __version__,
        }

    async def request(self, crowd: str, key: str, files: list[list[Any]]) -> dict[str, int]:
        """Take a stage into use; see `StageCache.request`. A cache that other crowds fill is waited for."""
        self.hear(crowd)
        deadline_s = time.perf_counter() + _FULL_S
        while True:
            try:
                return await asyncio.to_thread(self.cache.request, key, _files(files), crowd)
            except OutputError:
                if len(self.gone_s) < 2 or time.perf_counter() > deadline_s:
                    raise
            await asyncio.sleep(_FULL_EVERY_S)

    async def release(self, crowd: str, key: str) -> None:
        """End a use of a stage; see `StageCache.release`."""
        await asyncio.to_thread(self.cache.release, key, crowd)

    async def write(self, file: list[Any], start: int, piece: bytes) -> int:
        """Append a piece of a file, once the one before has come; see `StageCache.write`."""
        (wanted,) = _files([file])
        give_up_s = time.perf_counter() + _BEFORE_S
        while True:
            there = await asyncio.to_thread(self.cache.write, wanted, start, piece)
            if there >= start or time.perf_counter() > give_up_s:
                return there
            await asyncio.sleep(_BEFORE_S / 100)

    async def read(self, sha256: str, start: int, size: int) -> bytes:
        """Return a piece of a file; see `StageCache.read`."""
        return await asyncio.to_thread(self.cache.read, sha256, start, min(size, PIECE_BYTES))

    async def fetch(self, file: list[Any], start: int, source: str) -> int:
        """Fetch the rest of a file from another worker, and return how many bytes of it are here then.

        Args:
            file: Which one.
            start: How many bytes of it are here.
            source: Address of the other worker.
        """
        (wanted,) = _files([file])
        there = start
        other = self._worker.rpc(source)

        def read(begin: int) -> asyncio.Task[bytes]:
            return begun(other.splitload_read(sha256=wanted.sha256, start=begin, size=PIECE_BYTES))

        coming = read(there)
        try:
            while there < wanted.bytes:
                piece = await coming
                end = there + len(piece)
                if end < wanted.bytes:
                    coming = read(end)  # travels while this one is written
                now = await asyncio.to_thread(self.cache.write, wanted, there, piece)
                if now < end:  # what was there is gone, or the source has less than it should
                    return now
                if end < now < wanted.bytes:  # somebody else brings it as well
                    coming.cancel()
                    coming = read(now)
                there = now
            return there
        finally:
            coming.cancel()

    async def put(self, crowd: str, attempt: int, parcel: bytes) -> None:
        """Keep the input of a task that will come."""
        for key in list(self.inputs)[: max(0, len(self.inputs) - _MOST_INPUTS + 1)]:
            self.inputs.pop(key, None)
        self.inputs[crowd, attempt] = parcel

    async def take(self, crowd: str, attempt: int, source: str, made: list[int]) -> dict[str, float]:
        """Fetch the input of a task that will come from the worker that made it.

        Args:
            crowd: Name of the crowd.
            attempt: The task's.
            source: Address of the other worker.
            made: The attempt that made it, and how many times its stage was sent for it.

        Returns:
            Its "bytes", and the "seconds" that it took.

        Raises:
            MissingInputError: If it cannot be had.
        """
        start_s = time.perf_counter()
        try:
            parcel = await self._worker.rpc(source).splitload_give(crowd=crowd, attempt=made[0], sent=made[1])
        except (OSError, StageError) as error:
            raise MissingInputError(f"the input of attempt {attempt} is not at {source} any more") from error
        await self.put(crowd, attempt, parcel)
        return {"bytes": len(parcel), "seconds": time.perf_counter() - start_s}

    async def drop(self, crowd: str, attempt: int, sent: int) -> bool:
        """Have a task not run; return whether it has begun, and so runs on or has run."""
        self.inputs.pop((crowd, attempt), None)
        return not self.claims.claim(key_of(crowd, attempt, sent))

    async def give(self, crowd: str, attempt: int, sent: int) -> Any:
        """Return what a task has made, as Dask sends bytes without copying them.

        Raises:
            StageError: If it is not here.
        """
        key, data = key_of(crowd, attempt, sent), self._worker.data
        deadline_s = time.perf_counter() + _GIVE_S
        while (made := data.get(key)) is None and time.perf_counter() < deadline_s:
            await asyncio.sleep(_LOOK_EVERY_S)  # a task tells that it is done before Dask keeps what it returns
        if made is None:
            raise StageError(f"what attempt {attempt} has made is not on the worker {self._worker.name}")
        return to_serialize(made)

    async def rest(self, crowd: str) -> None:
        """Keep nothing more for a crowd: neither inputs nor stages that it alone has used."""
        self.gone_s.pop(crowd, None)
        for key in list(self.inputs):
            if key[0] == crowd:
                self.inputs.pop(key, None)  # a task may take it meanwhile
        await asyncio.to_thread(self.residents.part_from, crowd)
        await asyncio.to_thread(self.cache.part_from, crowd)

    async def _watch_clients(self) -> None:
        """Keep nothing more for crowds whose client was killed, or is cut off; one that is back gets all anew."""
        while True:
            start_s = time.perf_counter()
            await asyncio.sleep(_SILENT_S / 4)
            now_s = time.perf_counter()
            was_stopped = now_s - start_s > _SILENT_S / 2  # then it is this process that has heard nobody
            for crowd, gone_s in list(self.gone_s.items()):
                if now_s > gone_s and not was_stopped:
                    await self.rest(crowd)


class Claims:
    """Who was first: a task to begin, or its client to withdraw it. What was claimed long ago is forgotten."""

    def __init__(self) -> None:
        self._claimed: dict[Any, None] = {}
        self._lock = threading.Lock()

    def claim(self, key: Any) -> bool:
        """Return whether nobody has claimed a task before."""
        with self._lock:
            if key in self._claimed:
                return False
            while len(self._claimed) >= _MOST_CLAIMS:
                del self._claimed[next(iter(self._claimed))]
            self._claimed[key] = None
            return True


class Equip(WorkerPlugin):  # type: ignore[misc]
    """Has workers that lack the plugin get it, those that join later included; what others hold stays as it is."""

    name = f"{PLUGIN}-everywhere"

    async def setup(self, worker: Worker) -> None:
        """Give a worker the plugin."""
        if PLUGIN in worker.plugins:
            return
        try:
            await worker.plugin_add(StageWorker(), name=PLUGIN, catch_errors=False)
        except SplitloadError as error:  # it is told to who asks this worker; the others go on
            refusal = error
            del worker.plugins[PLUGIN]

            async def introduce() -> None:
                raise refusal

            worker.handlers["splitload_introduce"] = introduce


def run_task(text: str, given: Buffer | None) -> bytes | None:
    """Run one task on this worker, and tell the crowd of it; a Dask task.

    Args:
        text: What to do: a `TaskOrder`, written.
        given: The parcel that it reads; None for one that was brought here before, or where nothing is run.

    Returns:
        The parcel for the next stage; None where the stage is only opened, or something failed, of which the crowd is
        told.
    """
    worker, order = get_worker(), read(text)
    plugin: StageWorker = worker.plugins[PLUGIN]
    plugin.hear(order.crowd)
    if not plugin.claims.claim(worker.get_current_task()):
        return None
    given = given if given is not None else plugin.inputs.pop((order.crowd, order.attempt), None)
    told: dict[str, Any] = {"attempt": order.attempt}
    made: bytes | None = None
    try:
        made = _run(plugin.residents, order, given, told)
        if order.runs:
            plugin.remember(order.stage.key, told["load_s"], told["run_s"])
    except MissingInputError as error:
        told |= {"failed": "input", "error": str(error)}
    except MissingFileError as error:
        told |= {"failed": "files", "error": str(error)}
    except StageError as error:
        told |= {"failed": "item" if "run_s" in told else "worker", "error": str(error)}
    except (SplitloadError, MemoryError, OSError) as error:
        told |= {"failed": "worker", "error": " ".join(str(error).split()) or type(error).__name__}
    return_memory()
    told |= {
        "peak_bytes": plugin.meter.peak_bytes(),
        "cpu_s": time.process_time(),
        "most_resident": plugin.residents.most,
    }
    worker.log_event(topic(order.crowd), told)
    return made


def _run(residents: Residents, order: TaskOrder, given: Buffer | None, told: dict[str, Any]) -> bytes | None:
    """Open a stage and run it; what is known of it so far is in `told`."""
    with residents.turn():
        told["load_start_s"] = time.perf_counter()
        told["load_s"] = residents.open(order)
        if not order.runs:
            return None
        if given is None:
            raise MissingInputError(f"the input of attempt {order.attempt} is not here")
        told |= {"run_start_s": time.perf_counter(), "run_s": 0.0}
        made, saved_bytes = residents.run(order, opened(given))
        told["run_s"] = time.perf_counter() - told["run_start_s"]
        told |= {"made_bytes": len(made), "plain_bytes": len(made) + saved_bytes}
        return made


def _files(entries: list[list[Any]]) -> tuple[File, ...]:
    """Return files as they came over the network, each a name, its bytes and its SHA-256.

    Raises:
        StageError: If they are something else.
    """
    try:
        files = tuple(File(*entry) for entry in entries)
    except TypeError:
        files = ()
    if not files or not all(
        isinstance(name, str) and isinstance(size, int) and isinstance(sha, str) for name, size, sha in files
    ):
        raise StageError("what was sent describes no files of a stage; both sides need the same splitload")
    return files
