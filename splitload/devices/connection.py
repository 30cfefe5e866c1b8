"""A connection to a served device: requests that are retried, streams that go on where they broke."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from splitload.base.errors import DeviceError, OutputError, SplitloadError
from splitload.base.packages import need
from splitload.deploy.credentials import FINGERPRINT_BYTES, fingerprint_of
from splitload.devices.pairing import Address

PATIENCE_S = 60.0  # without any answer, after which a device counts as gone
CONTACT_S = 10.0  # the same for one that has never answered: its address may be wrong
TIMEOUT_S = 20.0  # of one request; a stream has a line more often
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _LONGEST_WISH_S = 0.1, 3.0, 30.0
_MOST_LINE_BYTES = 16 << 20
_MOST_JSON_BYTES = 4 << 20
_MOST_EVENTS = 10_000  # of one order, but for those that say that nothing happens
_MOST_CHARS = 500  # of what it says of an error
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME: boards without a battery begin in 1970


class WrongCodeError(DeviceError):
    """The code is not that of the device, or was mistyped."""


class RefusedError(DeviceError):
    """The device refuses a request.

    Attributes:
        status: Of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Connection:
    """Talks to one served device; may be used by several threads.

    Args:
        address: Where it is, and what it is known by.
        patience_s: How long to try without any answer.
        sleep: Waits between two tries.

    Raises:
        MissingPackageError: If httpx is not installed.
        DeviceError: If it cannot be reached, or shows another certificate.
    """

    def __init__(
        self, address: Address, *, patience_s: float = PATIENCE_S, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        need("a served device", "httpx")
        import h11
        import httpx

        self._address, self._patience_s, self._sleep = address, patience_s, sleep
        self._broken: tuple[type[Exception], ...] = (httpx.HTTPError, h11.ProtocolError, OSError, httpx.StreamError)
        self._answered_s: float | None = None  # when it answered last
        self._closed = False
        verify: Any = True
        if address.code.fingerprint is not None:
            verify = self._tried(lambda: _pinned(address))
        self._client = httpx.Client(
            base_url=address.url,
            headers={"Authorization": f"Bearer {address.code.token}", "Accept-Encoding": "identity"},
            timeout=TIMEOUT_S,
            verify=verify,
            trust_env=False,
            follow_redirects=False,
        )
        weakref.finalize(self, self._client.close)  # with the device, which nobody has to close

    def close(self) -> None:
        """End it; what is under way in other threads is given up."""
        self._closed = True
        self._client.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        data: Any = None,
        content: Callable[[], bytes] | None = None,
        params: Mapping[str, int] | None = None,
        patience_s: float | None = None,
    ) -> dict[str, Any]:
        """Return what the device answers to a request, parsed; a request that breaks is sent again.

        Args:
            method: Of HTTP.
            path: It, with its version.
            data: What goes there as JSON.
            content: Returns what goes there as it is; called for each try.
            params: The query.
            patience_s: How long to try, where that is less than usual.

        Raises:
            RefusedError: If it refuses.
            DeviceError: If it does not answer for long, or no object.
        """
        most_s = self._patience_s if patience_s is None else patience_s

        def once() -> Any:
            more: dict[str, Any] = {"json": data} if data is not None else {"content": content and content()}
            timeout_s = min(TIMEOUT_S, most_s)
            with self._client.stream(method, path, params=dict(params or {}), timeout=timeout_s, **more) as answer:
                read = self._read(answer, most_s)
                self._check(answer.status_code, answer.headers, read)
            try:
                return json.loads(read)
            except (ValueError, RecursionError):
                return None

        answer = self._tried(once, patience_s)
        if not isinstance(answer, dict):
            raise DeviceError(f"{self._name} answers what is no JSON object; is it splitload that serves there?")
        return answer

    def lines(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield the events of a stream until it ends; one that breaks goes on behind the last event.

        Raises:
            RefusedError: If the device refuses.
            DeviceError: If it does not answer for long, or streams what cannot be.
        """
        seen, pause_s, began_s = 0, _FIRST_PAUSE_S, time.monotonic()
        while True:
            try:
                with self._client.stream("GET", path, params={"seen": seen}) as answer:
                    if answer.status_code != 200:
                        self._check(answer.status_code, answer.headers, self._read(answer, self._patience_s))
                    for event in _parsed(answer.iter_raw()):
                        self._answered_s, pause_s = time.monotonic(), _FIRST_PAUSE_S
                        if event.get("event") != "beat":
                            seen += 1
                        if seen > _MOST_EVENTS:
                            raise DeviceError(f"{self._name} tells of more than can happen")
                        yield event
                return
            except Exception as error:
                self._pause(pause_s, error, began_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def fetch(self, path: str, target: Path, most_bytes: int) -> None:
        """Write what the device has at a path into a file; one that is there is replaced once all has come.

        What came before the connection broke is not sent again.

        Raises:
            RefusedError: If it refuses.
            DeviceError: If it is larger than that, or the device does not answer for long.
            OutputError: If the file cannot be written.
        """
        made, there = target.with_name(f".coming-{target.name}"), 0

        def once() -> None:
            nonlocal there
            furthest = there
            start = max(there - 1, 0)  # there is no range that is empty
            with self._client.stream("GET", path, headers={"Range": f"bytes={start}-"} if start else {}) as answer:
                if answer.status_code != 206:
                    start = 0
                if answer.status_code != (206 if start else 200):
                    self._check(answer.status_code, answer.headers, self._read(answer, self._patience_s))
                with _writing(made, start) as write:
                    there = start
                    for chunk in answer.iter_raw():  # as it comes: what is gathered is lost where it breaks
                        write(chunk)
                        there += len(chunk)
                        if there > furthest:
                            self._answered_s = time.monotonic()
                        if there > most_bytes:
                            raise DeviceError(f"{self._name} sends more than {most_bytes} bytes for one file")

        try:
            self._tried(once)
            made.replace(target)  # a link in its place would lead to a file of the user's
        finally:
            made.unlink(missing_ok=True)

    @property
    def _name(self) -> str:
        return f"the device at {self._address.place}"

    def _tried(self, once: Callable[[], Any], patience_s: float | None = None) -> Any:
        """Do something until the device answers."""
        pause_s, began_s = _FIRST_PAUSE_S, time.monotonic()
        while True:
            try:
                result = once()
            except Exception as error:
                self._pause(pause_s, error, began_s, patience_s)
            else:
                self._answered_s = time.monotonic()
                return result
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _pause(self, seconds: float, error: Exception, began_s: float, patience_s: float | None = None) -> None:
        """Wait before the next try of what began at a moment.

        Raises:
            DeviceError: If the device has not answered since for too long, or the connection was closed.
            Exception: The error, if another try is no use.
        """
        if self._closed:
            raise DeviceError(f"the connection to {self._name} was closed") from error
        if isinstance(error, SplitloadError) or not isinstance(error, (_AgainError, *self._broken)):
            raise error
        if isinstance(error, _AgainError):
            if error.is_answer and self._answered_s is None and (error.after_s or 0.0) > CONTACT_S:
                raise DeviceError(f"{self._name} asks to come again in {error.after_s:.0f} s: {error}") from error
            seconds = min(error.after_s or seconds, _LONGEST_WISH_S)
            if error.is_answer:
                self._answered_s = time.monotonic()
        now_s = time.monotonic()
        silent_s = now_s - began_s if self._answered_s is None else now_s - max(began_s, self._answered_s)
        usual_s = self._patience_s if self._answered_s is not None else min(self._patience_s, CONTACT_S)
        if silent_s + seconds > (usual_s if patience_s is None else patience_s):
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            cure = (
                "at this port, and that its --host lets others reach it"
                if self._answered_s is None
                else "then give the same command again: what was measured so far is kept"
            )
            raise DeviceError(
                f"{self._name} has not answered for {silent_s:.0f} s ({reason}); see that 'splitload serve' runs "
                f"there, {cure}"
            ) from error
        self._sleep(seconds)

    def _read(self, answer: Any, most_s: float) -> bytes:
        """Return the content of an answer that comes in time, and is no larger than anything that can be asked."""
        content, began_s = bytearray(), time.monotonic()
        for chunk in answer.iter_raw():
            content += chunk
            if len(content) > _MOST_JSON_BYTES:
                raise DeviceError(f"{self._name} answers more than anything it can be asked")
            if time.monotonic() - began_s > most_s:
                raise TimeoutError("its answer does not end")
        return bytes(content)

    def _check(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        """Raise what an answer other than 200 means."""
        if status == 200:
            return
        try:
            reason = str(json.loads(content)["error"])
        except (ValueError, LookupError, TypeError, RecursionError):
            reason = f"HTTP status {status}"
        reason = shown(reason)
        if status in (408, 429, 502, 503, 504):
            word = headers.get("retry-after", "")
            after_s = float(word) if word.isdecimal() else None
            raise _AgainError(reason, after_s, is_answer=status == 429)
        if status == 401:
            raise WrongCodeError(f"{self._name} does not take the code: give the address that it shows now")
        raise RefusedError(f"{self._name} refuses: {reason}", status)


def shown(text: str) -> str:
    """Return what a device said as people may be shown it: of one line, without what steers a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)[:_MOST_CHARS]


class _AgainError(Exception):
    """The device, or what stands before it, asks to come again later.

    Attributes:
        after_s: When; None where it does not say.
        is_answer: Whether it is the device's own.
    """

    def __init__(self, reason: str, after_s: float | None, *, is_answer: bool) -> None:
        super().__init__(reason)
        self.after_s, self.is_answer = after_s, is_answer


@contextmanager
def _writing(path: Path, start: int) -> Iterator[Callable[[bytes], Any]]:
    """Yield what writes into a file from a byte on; from the first on, into a new one.

    Raises:
        OutputError: If it cannot be written: no fault of the device's.
    """
    try:
        file = path.open("r+b" if start else "wb", buffering=0)  # what is not written yet would fail as it is closed
        file.seek(start)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror or error}") from error

    def write(chunk: bytes) -> None:
        left = memoryview(chunk)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            raise OutputError(f"cannot write '{path}': {error.strerror or error}") from error

    with file:
        yield write


def _parsed(chunks: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a stream of lines.

    Raises:
        DeviceError: If a line is none.
    """
    left = b""
    for chunk in chunks:
        *lines, left = (left + chunk).split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                event = None
            if not isinstance(event, dict):
                raise DeviceError("the device streams what is no event; is it splitload that serves there?")
            yield event
        if len(left) > _MOST_LINE_BYTES:
            raise DeviceError("the device streams a line without an end")


def _pinned(address: Address) -> ssl.SSLContext:
    """Return a context that trusts the certificate of the device and no other.

    Raises:
        DeviceError: If the device shows another one, or speaks no TLS.
        OSError: If it cannot be reached.
    """
    parts = urlsplit(address.url)
    asked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asked.check_hostname, asked.verify_mode = False, ssl.CERT_NONE  # what it shows is compared below
    asked.minimum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection((parts.hostname or "", parts.port or 0), TIMEOUT_S) as plain:
        try:
            with asked.wrap_socket(plain) as secure:
                shown = secure.getpeercert(binary_form=True) or b""
        except ssl.SSLError as error:
            if error.reason != "WRONG_VERSION_NUMBER":  # others pass, such as a connection that is cut
                raise
            raise DeviceError(
                f"what answers at {address.place} speaks no TLS: another program has the port, or 'splitload serve "
                "--http' does; give the address that it shows now"
            ) from error
    if fingerprint_of(shown) != address.code.fingerprint:
        found = hashlib.sha256(shown).hexdigest()[: 2 * FINGERPRINT_BYTES]
        raise WrongCodeError(
            f"what answers at {address.place} is not the device of this code (its certificate is {found}): "
            "the code is mistyped, the device was set up anew, or somebody stands between; give the address that it "
            "shows now"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # it is known by its certificate, wherever it is
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(shown))
    return context
