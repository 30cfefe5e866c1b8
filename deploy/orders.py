"""What a served device is asked to do: orders, each with files and perhaps a job, one job at a time, in turn.

- An order names its files by SHA-256 and keeps them in the cache until it ends. It waits until all are there.
- Its number is its sender's, so that the same order sent twice, after a connection broke, is one.
- A job runs alone. What it says of its progress, and its answer, can be asked for until the order is ended.
- An order that nobody asks about for `LEASE_S` is ended: its sender is gone.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from splitload.base.errors import OutputError, SplitloadError, StageError
from splitload.bundle.manifest import File
from splitload.deploy.stage_cache import StageCache
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
        job: The message of the job; None where files are sent for later orders.
        cold: Whether the job's files are evicted from the page cache before.
        state: How far it is: "files" are missing, "queued", "running", "done" or "failed".
        events: What happened, as JSON values; the last one has the answer, or why there is none.
        made: Names of the files that the job wrote.
        asked_s: When somebody asked about it last.
        stop: Is set once it is ended.
    """

    def __init__(self, files: Sequence[File], job: Any, cold: bool) -> None:
        self.key = stage_key(files)
        self.files = tuple(files)
        self.job = job
        self.cold = cold
        self.state: State = "files"
        self.events: list[dict[str, Any]] = []
        self.made: list[str] = []
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
        with self._ready:
            order, is_new = self._orders.get(number), number not in self._orders
            if order is None:
                if len(self._orders) >= MOST_ORDERS:
                    raise FullError(f"{MOST_ORDERS} orders are open; end one, or wait until one is done")
                order = self._orders[number] = wanted
            elif not order.is_same(wanted):
                raise OtherOrderError(f"order {number} asks for something else; take another number")
            order.asked_s = time.monotonic()
            if order.state != "files":
                return order, {}
        missing: dict[str, int] = {}
        try:
            if order.files:
                missing = self._cache.request(order.key, order.files, number)
                if not is_new:
                    self._cache.release(order.key, number)  # one use is enough
        except SplitloadError:
            self.end(number)
            raise
        with self._ready:
            if not missing and order.state == "files":
                order.state = "queued" if order.job is not None else "done"
                self._tell(order, {"event": order.state})
                self._ready.notify_all()
        return order, missing

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
        """Return a file that an order still waits for."""
        with self._ready:
            waiting = (each for each in self._orders.values() if each.state == "files")
            return next((file for order in waiting for file in order.files if file.sha256 == sha256), None)

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
        if name not in self.find(number).made:
            raise UnknownOrderError(f"order {number} has written no file '{name:.80}'")
        return self._folder / number / name

    def end(self, number: str) -> None:
        """End an order: its job is stopped if it runs, and what it wrote is removed."""
        with self._ready:
            order = self._orders.pop(number, None)
        if order is None:
            return
        order.stop.set()
        if order.state != "running":  # else whoever runs it does that
            shutil.rmtree(self._folder / number, ignore_errors=True)
        self._cache.part_from(number)
        self._changed()

    def _end_left(self) -> None:
        """End the orders whose sender is gone."""
        now = time.monotonic()
        with self._ready:
            left = [
                number
                for number, order in self._orders.items()
                if now - order.asked_s > LEASE_S and order.state not in ("queued", "running")
            ]
        for number in left:
            self.end(number)

    def _tell(self, order: Order, event: dict[str, Any]) -> None:
        order.events.append(event)
        self._changed()

    def _work_off(self) -> None:
        """Do the jobs, in the order in which they were ready."""
        while (found := self._next()) is not None:
            number, order = found
            place = self._folder / number
            try:
                linked = self._linked(order, place)
                answer = self._work.do(order.job, place, order.cold, partial(self._tell, order), order.stop)
                json.dumps(answer, allow_nan=False)  # what is no JSON is no answer
                for file in linked:
                    file.unlink(missing_ok=True)
                made = sorted(str(file.relative_to(place)) for file in place.rglob("*") if file.is_file())
                last = {"event": "done", "answer": answer, "made": made}
            except Exception as error:  # the queue goes on, whatever a job was
                made, last = [], {"event": "failed", "error": _one_line(error)}
            with self._ready:
                gone = self._orders.get(number) is not order
                order.made, order.state = made, "failed" if last["event"] == "failed" else "done"
                order.asked_s = time.monotonic()
            if gone or not made:
                shutil.rmtree(place, ignore_errors=True)
            self._tell(order, last)

    def _next(self) -> tuple[str, Order] | None:
        """Wait for an order whose job can be done; None where no more are."""
        with self._ready:
            while not self._closed:
                for number, order in self._orders.items():
                    if order.state == "queued":
                        order.state = "running"
                        self._tell(order, {"event": "running"})
                        return number, order
                self._ready.wait()
        return None

    def _linked(self, order: Order, place: Path) -> list[Path]:
        """Link an order's files into a folder of its own, each checked; return them there."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if not order.files:
            return []
        kept = self._cache.place(order.key, order.files)
        linked = []
        for file in order.files:
            target = place / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(kept / file.name)
            linked.append(target)
        return linked


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text if isinstance(error, SplitloadError) and text else f"{type(error).__name__}: {text}")[:500]


def events_from(order: Order, seen: int) -> Iterator[dict[str, Any]]:
    """Yield what happened to an order, but for the first `seen` events."""
    yield from order.events[max(seen, 0) :]
