"""Served devices: boards, phones and servers on which 'splitload serve' runs, measured as this host is."""

from __future__ import annotations

import contextlib
import threading
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from splitload.base.errors import DeviceError, DeviceWarning, OutputError, SplitloadError
from splitload.base.fields import Reader, is_count
from splitload.bundle.manifest import File
from splitload.bundle.validate import is_plain
from splitload.devices import PageCache
from splitload.devices.acquaintances import remember
from splitload.devices.connection import Connection, RefusedError, WrongCodeError, shown
from splitload.devices.machine import Machine
from splitload.devices.measuring import REPEATS, MeasuringDevice
from splitload.devices.pairing import Address, prove
from splitload.devices.transfer import Transfer
from splitload.measure.answers import check_answer
from splitload.measure.job import Job
from splitload.measure.job_files import files_made, job_files

BEGINNINGS = 8  # of one job, after each of which the service there ended
SENDINGS = 8  # of one job's files
END_S = 3.0  # to wait for a device that is told that nobody waits for it any more
MOST_THREADS = 4096
MOST_MADE_BYTES = 1 << 33  # of a file that a job writes
_WORD = 200
_GONE = 404
_DAMAGED = 409
_FULL = 507


class RemoteMachine:
    """Runs jobs on a served device; may be used by several threads.

    Args:
        connection: To the device.

    Attributes:
        transfer: What sends files there.
    """

    def __init__(self, connection: Connection) -> None:
        self.transfer = Transfer(connection)
        self._connection = connection

    def run(
        self,
        job: Job,
        folder: Path,
        failed: Callable[[str], SplitloadError],
        *,
        cold: Sequence[Path] = (),
    ) -> dict[str, Any]:
        """Return what a fresh process on the device answers; see `measure.fresh.Runner`.

        Raises:
            DeviceError: If the device does not answer, refuses, or answers what cannot be.
            SplitloadError: If the job fails: what `failed` returned.
        """
        files = {self.transfer.described(name, path): path for name, path in job_files(job, folder).items()}
        number = uuid.uuid4().hex
        try:
            for _ in range(BEGINNINGS):
                try:
                    with self.transfer.going_first():
                        last = self._done(number, files, job.to_json(), bool(cold))
                    if last is not None:
                        return self._answered(number, job, folder, files, last, failed)
                except RefusedError as error:
                    if error.status == _FULL:
                        raise DeviceError(f"{error} (on the device)") from error
                    if error.status not in (_GONE, _DAMAGED):
                        raise
        finally:
            self._end(number)
        raise DeviceError(
            f"the service on the device ended {BEGINNINGS} times while it did one job: is there enough memory for it?"
        )

    def _answered(
        self,
        number: str,
        job: Job,
        folder: Path,
        files: Mapping[File, Path],
        last: dict[str, Any],
        failed: Callable[[str], SplitloadError],
    ) -> dict[str, Any]:
        """Return the answer of an order's last event, if it can be one; the files that it names lie in the folder then.

        Raises:
            DeviceError: If it cannot be one, or the device failed, not the job.
            SplitloadError: If the job failed: what `failed` returned.
        """
        if last["event"] == "failed":
            reason = _text(last.get("error"))
            raise DeviceError(f"{reason} (on the device)") if last.get("device") is True else failed(reason)
        answer = check_answer(job, last.get("answer"))
        given = {file.name for file in files}
        for name in files_made(job, answer):
            if not is_plain(name) or name in given:
                raise DeviceError(f"the device names a file {name!r:.80}; nothing of its answer is kept")
            self._connection.fetch(f"/v1/orders/{number}/files/{name}", folder / name, MOST_MADE_BYTES)
        _tell_throttled(last.get("answer"))
        return answer

    def expect(self, paths: Sequence[Path]) -> None:
        """Send files that later jobs will read, between others; what goes wrong is left to those jobs."""

        def send() -> None:
            with contextlib.suppress(SplitloadError, OSError):
                for path in paths:
                    file = self.transfer.described(f"ahead-{path.name}", path)
                    number = uuid.uuid4().hex
                    body = _order([file], None, cold=False)
                    self._send(number, body, {file: path}, ahead=True)
                    self._end(number)  # the file stays, unless the room is needed

        threading.Thread(target=send, name="ahead", daemon=True).start()

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def _done(self, number: str, files: Mapping[File, Path], job: dict[str, Any], cold: bool) -> dict[str, Any] | None:
        """Have an order done, and return its last event; None where the service has forgotten it meanwhile."""
        self._send(number, _order(list(files), job, cold=cold), files)
        for event in self._connection.lines(f"/v1/orders/{number}/events"):
            if event.get("event") in ("done", "failed"):
                return event
        return None

    def _send(self, number: str, body: dict[str, Any], files: Mapping[File, Path], *, ahead: bool = False) -> None:
        """Place an order, and send what is missing until nothing is."""
        for _ in range(SENDINGS):
            missing = self._placed(number, body)
            if not missing:
                return
            self.transfer.send(files, missing, ahead=ahead)
        raise DeviceError(f"the device asks for the same files after {SENDINGS} times; is its disk in order?")

    def _placed(self, number: str, body: dict[str, Any]) -> dict[str, int]:
        """Place an order; return what is missing of its files."""
        missing = self._connection.ask("PUT", f"/v1/orders/{number}", data=body).get("missing")
        known = {file["sha256"]: file["bytes"] for file in body["files"]}
        if not isinstance(missing, dict) or not all(
            is_count(start) and start <= known.get(sha256, -1) for sha256, start in missing.items()
        ):
            raise DeviceError("the device asks for files that it was not told of; is it splitload that serves there?")
        return missing

    def _end(self, number: str) -> None:
        with contextlib.suppress(DeviceError):
            self._connection.ask("DELETE", f"/v1/orders/{number}", patience_s=END_S)


class RemoteDevice(MeasuringDevice):
    """A device on which 'splitload serve' runs.

    Args:
        address: Where it is.
        cache: The user's cache folder, of this machine.
        repeats: Fresh processes for each figure, at least 1.
        refresh: Whether to measure again what the cache holds.
        page_cache: See `MeasuringDevice`.
        connection: To it; made where it is None.

    Attributes:
        said: What it says of itself, see `deploy.description`.
        threads: Loads that can run there at a time.

    Raises:
        DeviceError: If it cannot be reached, or is no device.
    """

    def __init__(
        self,
        address: Address,
        cache: Path,
        *,
        repeats: int = REPEATS,
        refresh: bool = False,
        page_cache: PageCache = "warm",
        connection: Connection | None = None,
    ) -> None:
        try:
            connection = connection or Connection(address)
            said = connection.ask("GET", "/v1/device")
        except WrongCodeError:
            prove(address, is_right=False)
            raise
        prove(address, is_right=True)
        try:
            row = Reader(said, "device")
            name, cpu, model, runtime = (_word(row, key) for key in ("name", "cpu", "cpu_model", "onnxruntime"))
            threads = row.count("threads", 1)
            if not is_plain(name):  # files are named by it
                raise DeviceError(f"it calls itself {name!r:.80}")
            if threads > MOST_THREADS:
                raise DeviceError(f"it says that it has {threads} threads")
        except SplitloadError as error:
            raise DeviceError(f"what answers at {address.place} is no device ({error})") from error
        self.said = said
        with contextlib.suppress(OutputError):  # it is for people, later
            remember(address, said)
        self._remote = RemoteMachine(connection)
        identity = address.code.fingerprint or address.code.token  # another board may be of the same kind
        machine = Machine(
            name, f"'{name}' at {address.place}", threads, cpu, model, lambda: runtime, self._remote.run,
            identity=identity, expect=self._remote.expect,
        )  # fmt: skip
        self.threads = threads
        super().__init__(machine, cache, repeats=repeats, refresh=refresh, page_cache=page_cache)
        self.description = f"served at {address.place}, measured: {model}, {threads} threads, onnxruntime {runtime}"

    def close(self) -> None:
        """End the connection."""
        self._remote.close()


def _order(files: Sequence[File], job: dict[str, Any] | None, *, cold: bool) -> dict[str, Any]:
    return {"files": [file._asdict() for file in files], "job": job, "cold": cold}


def _word(row: Reader, key: str) -> str:
    word = row.text(key)
    if not word.isprintable() or len(word) > _WORD:
        raise DeviceError(f"{row.where}.{key} must be one short line")
    return word


def _text(value: Any) -> str:
    return shown(value) if isinstance(value, str) else "it does not say why"


def _tell_throttled(answer: Any) -> None:
    """Warn where the last sample that was taken was of a processor that slowed down."""
    said = answer.get("conditions") if isinstance(answer, dict) else None
    reason = said.get("throttled") if isinstance(said, dict) else None
    if isinstance(reason, str):
        warnings.warn(
            f"a sample was taken while the device was throttled, again and again: {_text(reason)}; let it cool",
            DeviceWarning,
            stacklevel=4,
        )
