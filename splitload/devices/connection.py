"""A connection to a served device: requests that are retried, streams that go on where they broke."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from splitload.base.errors import DeviceError, MissingPackageError
from splitload.base.packages import has, install
from splitload.deploy.credentials import FINGERPRINT_BYTES, fingerprint_of
from splitload.devices.pairing import Address

PATIENCE_S = 60.0  # without any answer, after which a device counts as gone
TIMEOUT_S = 20.0  # of one request; a stream has a line more often
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 3.0
_MOST_LINE_BYTES = 64 << 20
_MOST_JSON_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20


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
        if not has("httpx"):
            raise MissingPackageError(f"a served device needs the package 'httpx'. Install it: {install('desk')}")
        import h11
        import httpx

        self._address, self._patience_s, self._sleep = address, patience_s, sleep
        self._broken: tuple[type[Exception], ...] = (httpx.HTTPError, h11.ProtocolError, OSError, httpx.StreamError)
        self._answered_s = time.monotonic()
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
        """End it."""
        self._client.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        data: Any = None,
        content: bytes | None = None,
        params: Mapping[str, int] | None = None,
    ) -> Any:
        """Return what the device answers to a request, parsed; a request that breaks is sent again.

        Args:
            method: Of HTTP.
            path: It, with its version.
            data: What goes there as JSON.
            content: What goes there as it is.
            params: The query.

        Raises:
            RefusedError: If it refuses.
            DeviceError: If it does not answer for long.
        """

        def once() -> Any:
            more: dict[str, Any] = {"json": data} if data is not None else {"content": content}
            answer = self._client.request(method, path, params=dict(params or {}), **more)
            self._check(answer.status_code, answer.headers, answer.content)
            if len(answer.content) > _MOST_JSON_BYTES:
                raise DeviceError(f"{self._name} answers more than anything it can be asked")
            try:
                return json.loads(answer.content)
            except (ValueError, RecursionError) as error:
                raise DeviceError(
                    f"{self._name} answers what is no JSON; is it splitload that serves there?"
                ) from error

        return self._tried(once)

    def lines(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield the events of a stream until it ends; one that breaks goes on behind the last event.

        Raises:
            RefusedError: If the device refuses.
            DeviceError: If it does not answer for long.
        """
        seen = 0
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                with self._client.stream("GET", path, params={"seen": seen}) as answer:
                    if answer.status_code != 200:
                        self._check(answer.status_code, answer.headers, answer.read())
                    for event in _parsed(answer.iter_bytes()):
                        self._answered_s, pause_s = time.monotonic(), _FIRST_PAUSE_S
                        if event.get("event") != "beat":
                            seen += 1
                        yield event
                return
            except _AgainError as again:
                self._pause(again.after_s or pause_s, again)
            except self._broken as error:
                if isinstance(error, DeviceError):
                    raise
                self._pause(pause_s, error)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def fetch(self, path: str, target: Path, most_bytes: int) -> None:
        """Write what the device has at a path into a file.

        Raises:
            RefusedError: If it refuses.
            DeviceError: If it is larger than that, or the device does not answer for long.
        """

        def once() -> None:
            with self._client.stream("GET", path) as answer, target.open("wb") as file:
                if answer.status_code != 200:
                    self._check(answer.status_code, answer.headers, answer.read())
                for chunk in answer.iter_bytes(_CHUNK_BYTES):
                    file.write(chunk)
                    self._answered_s = time.monotonic()
                    if file.tell() > most_bytes:
                        raise DeviceError(f"{self._name} sends more than {most_bytes} bytes for one file")

        self._tried(once)

    @property
    def _name(self) -> str:
        return f"the device at {self._address.place}"

    def _tried(self, once: Callable[[], Any]) -> Any:
        """Do something until the device answers."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                result = once()
            except _AgainError as again:
                self._pause(again.after_s or pause_s, again)
            except self._broken as error:
                if isinstance(error, DeviceError):
                    raise
                self._pause(pause_s, error)
            else:
                self._answered_s = time.monotonic()
                return result
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _pause(self, seconds: float, error: Exception) -> None:
        """Wait before the next try.

        Raises:
            DeviceError: If the device has not answered for too long.
        """
        silent_s = time.monotonic() - self._answered_s
        if silent_s + seconds > self._patience_s:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DeviceError(
                f"{self._name} has not answered for {silent_s:.0f} s ({reason}); see that 'splitload serve' runs "
                "there, then give the same command again: what was measured so far is kept"
            ) from error
        self._sleep(seconds)

    def _check(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        """Raise what an answer other than 200 means."""
        if status == 200:
            return
        try:
            reason = str(json.loads(content)["error"])
        except (ValueError, LookupError, TypeError, RecursionError):
            reason = f"HTTP status {status}"
        reason = "".join(char if char.isprintable() else " " for char in reason)[:500]
        if status in (429, 502, 503, 504) or (status == 408):
            word = headers.get("retry-after", "")
            raise _AgainError(reason, float(word) if word.isdecimal() else None)
        if status == 401:
            raise RefusedError(f"{self._name} does not take the code that is known here: give what it shows now", 401)
        raise RefusedError(f"{self._name} refuses: {reason}", status)


class _AgainError(Exception):
    """The device asks to come again later."""

    def __init__(self, reason: str, after_s: float | None) -> None:
        super().__init__(reason)
        self.after_s = after_s


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
        DeviceError: If the device shows another one.
        OSError: If it cannot be reached.
    """
    parts = urlsplit(address.url)
    asked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asked.check_hostname, asked.verify_mode = False, ssl.CERT_NONE  # what it shows is compared below
    asked.minimum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection((parts.hostname or "", parts.port or 0), TIMEOUT_S) as plain,
        asked.wrap_socket(plain) as secure,
    ):
        shown = secure.getpeercert(binary_form=True) or b""
    if fingerprint_of(shown) != address.code.fingerprint:
        found = hashlib.sha256(shown).hexdigest()[: 2 * FINGERPRINT_BYTES]
        raise DeviceError(
            f"what answers at {address.place} is not the device that is known here (its certificate is {found}): "
            "somebody stands between, or it was set up anew; then give the address that it shows now"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # it is known by its certificate, wherever it is
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(shown))
    return context
