"""What a served device is asked to do: orders, each with files and perhaps a job, one job at a time, in turn.

- An order names its files by SHA-256 and keeps them in the cache until it ends. It waits until all are there.
- Its number is its sender's, so that the same order sent twice, after a connection broke, is one.
- A job runs alone. What it says of its progress, and its answer, can be asked for until the order is ended.
- An order that nobody asks about, or sends files for, in `LEASE_S` is ended: its sender is gone.
- Files that are sent ahead, without a job, make way for those that a job needs.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from splitload.base.errors import OutputError, SplitloadError, StageError
from splitload.base.pieces import link_file
from splitload.bundle.manifest import File
from splitload.deploy.stage_cache import MissingFileError, StageCache
from splitload.deploy.stage_names import stage_key

LEASE_S = 600.0
MOST_ORDERS = 64
State = Literal["files", "queued", "running", "done", "failed"]
ENDED = ("done", "failed")


class Work(Protocol):
    """Does jobs; `splitload.measure.served` has the one that measures."""

    def check(self, job: Any) -> None:
        """Raise `SplitloadError` if a message is no job that may be done here."""
        ...

    def do(
        self, job: Any, folder: Path, cold: bool, tell: Callable[[dict[str, Any]], None], stop: threading.Event
    ) -> dict[str, Any]:
        """Return the answer to a job whose files lie in a folder; what it writes there can be fetched.

        Args:
            job: Its message.
            folder: Its folder.
            cold: Whether its files are evicted from the page cache before.
            tell: Takes an event that is worth telling, as JSON values.
            stop: Is set where nobody wants the answer any more; the job fails then.

        Raises:
            SplitloadError: If it fails.
        """
        ...


class Order:
    """One order.

    Attributes:
        key: That of its files in the cache.
        files: What it needs.
        by_hash: The same by SHA-256.
        job: The message of the job; None where files are sent for later orders.
        cold: Whether the job's files are evicted from the page cache before.
        state: How far it is: "files" are missing, "queued", "running", "done" or "failed".
        events: What happened, as JSON values; the last one has the answer, or why there is none.
        made: Names of the files that the job wrote.
        folder: Where its job runs, and what it uses in the cache is used by; numbers of senders may come again.
        asked_s: When somebody asked about it last.
        stop: Is set once it is ended.
    """

    def __init__(self, files: Sequence[File], job: Any, cold: bool) -> None:
        self.key = stage_key(files)
        self.files = tuple(files)
        self.by_hash = {file.sha256: file for file in files}
        self.job = job
        self.cold = cold
        self.state: State = "files"
        self.events: list[dict[str, Any]] = []
        self.made: list[str] = []
        self.folder = uuid.uuid4().hex
        self.asked_s = time.monotonic()
        self.stop = threading.Event()

    def is_same(self, other: Order) -> bool:
        """Return whether another order asks for the same."""
        return (self.key, self.job, self.cold) == (other.key, other.job, other.cold)


class UnknownOrderError(StageError):
    """There is no order of that number: it was ended, or the device started anew since."""


class OtherOrderError(StageError):
    """There is another order of the same number."""


class FullError(StageError):
    """There are as many orders as a device takes."""


class Orders:
    """Keeps orders, and does their jobs in a thread of its own; may be called from several threads.

    Args:
        cache: Where files are kept.
        folder: Where jobs run, on the file system of the cache; it is emptied.
        work: Does the jobs.
        changed: Called, from any thread, when something happened to an order.
    """

    def __init__(self, cache: StageCache, folder: Path, work: Work, changed: Callable[[], None]) -> None:
        self._cache, self._folder, self._work, self._changed = cache, folder, work, changed
        self._orders: dict[str, Order] = {}
        self._ready = threading.Condition()
        self._closed = False
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"cannot work in '{folder}': {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._work_off, name="orders", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all orders, and wait for the job that runs."""
        with self._ready:
            self._closed = True
            numbers = list(self._orders)
            self._ready.notify_all()
        for number in numbers:
            self.end(number)
        self._thread.join()

    def place(self, number: str, wanted: Order) -> tuple[Order, dict[str, int]]:
        """Take an order, or go on with it; return it, and by SHA-256 from which byte on each file is missing.

        Raises:
            OtherOrderError: If the number is that of another order.
            FullError: If there are too many orders.
            OutputError: If there is no room for the files.
            SplitloadError: If it is none that can be done here.
        """
        if wanted.job is not None:
            self._work.check(wanted.job)
        self._end_left()
        while (order := self._taken(number, wanted)) is None:
            if wanted.job is None or not self._end_ahead():
                raise FullError(f"{MOST_ORDERS} orders are open; end one, or wait until one is done")
        if order.state != "files":
            return order, {}
        missing: dict[str, int] = {}
        try:
            if order.files:
                missing = self._requested(order)
                if order is not wanted:
                    self._cache.release(order.key, order.folder)  # one use is enough
        except SplitloadError:
            self.end(number)
            raise
        with self._ready:
            if self._orders.get(number) is not order:  # it was ended meanwhile, and its uses with it, but for this one
                self._cache.part_from(order.folder)
                raise UnknownOrderError(f"order {number} was ended")
            if not missing and order.state == "files":
                order.state = "queued" if order.job is not None else "done"
                self._tell(order, {"event": order.state})
                self._ready.notify_all()
        return order, missing

    def _taken(self, number: str, wanted: Order) -> Order | None:
        """Return the order of a number, which is the one that is wanted if there was none; None where no more fit."""
        with self._ready:
            order = self._orders.get(number)
            if order is None and len(self._orders) < MOST_ORDERS:
                order = self._orders[number] = wanted
            if order is not None:
                if not order.is_same(wanted):
                    raise OtherOrderError(f"order {number} asks for something else; take another number")
                order.asked_s = time.monotonic()
            return order

    def _requested(self, order: Order) -> dict[str, int]:
        """Request an order's files; those that were sent ahead make way where a job needs the room."""
        while True:
            try:
                return self._cache.request(order.key, order.files, order.folder)
            except OutputError:
                if order.job is None or not self._end_ahead():
                    raise

    def _end_ahead(self) -> bool:
        """End the oldest order without a job; return whether there was one."""
        with self._ready:
            number = next((number for number, order in self._orders.items() if order.job is None), None)
        if number is not None:
            self.end(number)
        return number is not None

    def find(self, number: str) -> Order:
        """Return an order, about which somebody asks.

        Raises:
            UnknownOrderError: If there is none of that number.
        """
        with self._ready:
            order = self._orders.get(number)
            if order is None:
                raise UnknownOrderError(f"there is no order {number} here; place it again")
            order.asked_s = time.monotonic()
            return order

    def file_of(self, sha256: str) -> File | None:
        """Return a file that orders still wait for, about which somebody asks thereby."""
        found = None
        with self._ready:
            for order in self._orders.values():
                file = order.by_hash.get(sha256) if order.state == "files" else None
                if file is not None:
                    order.asked_s = time.monotonic()
                    found = found or file
        return found

    def ahead(self, order: Order) -> int:
        """Return how many jobs are done before an order's, or are under way."""
        with self._ready:
            before = list(self._orders.values())
            before = before[: before.index(order)] if order in before else before
            return sum(each.state in ("queued", "running") for each in before)

    def place_of(self, number: str, name: str) -> Path:
        """Return where a file lies that a job has written.

        Raises:
            UnknownOrderError: If there is no such order, or it has written no such file.
        """
        order = self.find(number)
        if name not in order.made:
            raise UnknownOrderError(f"order {number} has written no file '{name:.80}'")
        return self._folder / order.folder / name

    def end(self, number: str) -> None:
        """End an order: its job is stopped if it runs, and what it wrote is removed."""
        with self._ready:
            order = self._orders.pop(number, None)
        if order is None:
            return
        order.stop.set()
        if order.state != "running":  # else whoever runs it does that
            shutil.rmtree(self._folder / order.folder, ignore_errors=True)
        self._cache.part_from(order.folder)
        self._changed()

    def _end_left(self) -> None:
        """End the orders whose sender is gone: who waits for a job listens, and who sends files asks."""
        now = time.monotonic()
        with self._ready:
            left = [number for number, order in self._orders.items() if now - order.asked_s > LEASE_S]
        for number in left:
            self.end(number)

    def _tell(self, order: Order, event: dict[str, Any]) -> None:
        order.events.append(event)
        self._changed()

    def _work_off(self) -> None:
        """Do the jobs, in the order in which they were ready."""
        while (found := self._next()) is not None:
            number, order = found
            place = self._folder / order.folder
            made: list[str] = []
            last: dict[str, Any] = {}
            try:
                made, last = self._did(order, place)
            except MissingFileError:  # it is damaged on the disk; who places the order again sends it
                self.end(number)
            except Exception as error:  # the queue goes on, whatever a job was
                last = {"event": "failed", "error": _one_line(error), "device": isinstance(error, OSError)}
            with self._ready:
                gone = self._orders.get(number) is not order
                if not gone:
                    order.made, order.state = made, last["event"]
                    order.asked_s = time.monotonic()
                    self._tell(order, last)
            if gone or not made:
                shutil.rmtree(place, ignore_errors=True)

    def _did(self, order: Order, place: Path) -> tuple[list[str], dict[str, Any]]:
        """Do an order's job; return the names of the files that it wrote, and what is told last."""
        linked = self._linked(order, place)
        before = [_state_of(file) for _, file in linked]
        changed = ""
        try:
            answer = self._work.do(order.job, place, order.cold, partial(self._tell, order), order.stop)
        finally:
            for (sha256, file), state in zip(linked, before, strict=True):
                if _state_of(file) != state:  # it is one with the file in the cache
                    self._cache.forget(sha256)
                    changed = file.name
                file.unlink(missing_ok=True)
        if changed:
            raise StageError(f"the job has written over '{changed:.80}', a file that it was given; refused")
        json.dumps(answer, allow_nan=False)  # what is no JSON is no answer
        made = sorted(str(file.relative_to(place)) for file in place.rglob("*") if file.is_file())
        return made, {"event": "done", "answer": answer, "made": made}

    def _next(self) -> tuple[str, Order] | None:
        """Wait for an order whose job can be done; None where no more are."""
        self._end_left()
        with self._ready:
            while not self._closed:
                for number, order in self._orders.items():
                    if order.state == "queued":
                        order.state = "running"
                        self._tell(order, {"event": "running"})
                        return number, order
                self._ready.wait()
        return None

    def _linked(self, order: Order, place: Path) -> list[tuple[str, Path]]:
        """Link an order's files into a folder of its own, each checked; return them there, with their SHA-256."""
        place.mkdir()
        if not order.files:
            return []
        kept = self._cache.place(order.key, order.files)
        linked = []
        for file in order.files:
            target = place / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            link_file(kept / file.name, target)
            linked.append((file.sha256, target))
        return linked


def _state_of(file: Path) -> tuple[int, int, int] | None:
    """Return what tells that a file has been written; None where it is gone."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text if isinstance(error, SplitloadError) and text else f"{type(error).__name__}: {text}")[:500]
