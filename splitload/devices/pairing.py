"""How a desk knows served devices: by their address and the code that they showed, kept in the user's cache."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from splitload.base.atomic import write_private
from splitload.base.errors import BundleError, OutputError, UsageError
from splitload.base.fields import Reader
from splitload.deploy.credentials import Code, read_code
from splitload.devices.adb import PREFIX, forwarded, is_adb

ROOM = "devices"  # in the cache
SCHEMES = ("http", "https")
_CURE = "give the address that 'splitload serve' shows there, with what follows the #"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a device is served, and what it is known by.

    Attributes:
        url: "https://HOST:PORT" or "http://HOST:PORT".
        code: What it showed.
        file: Where the code is kept; None where it is not.
    """

    url: str
    code: Code
    file: Path | None = None

    @property
    def place(self) -> str:
        """HOST:PORT, for people."""
        return self.url.partition("://")[2]


def is_served(word: str) -> bool:
    """Return whether a DEVICE word is that of a served device: its address, or adb:SERIAL."""
    return is_adb(word) or word.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def address_of(word: str, cache: Path) -> Address:
    """Return where the device of a word is served; the port of a phone is forwarded first.

    Args:
        word: As `read_address` takes it, or "adb:SERIAL" with or without "#CODE".
        cache: The user's cache folder.

    Raises:
        UsageError: If it is no such word, or the device's code is not known.
        DeviceError: If adb does not reach a phone.
        OutputError: If the code cannot be kept.
    """
    if not is_adb(word):
        return read_address(word, cache)
    serial, url = forwarded(word)
    return read_address(url, cache, serial)


def read_address(word: str, cache: Path, serial: str | None = None) -> Address:
    """Return the address that a word says; with its code it is kept, without one it has to be known.

    A code takes the place of the one before once a device has taken it, see `prove`.

    Args:
        word: "https://HOST:PORT/#CODE", or without "/#CODE".
        cache: The user's cache folder.
        serial: Of a device that is reached by adb, whose port changes: it is known by that.

    Raises:
        UsageError: If it is no address, or its code is not known.
        OutputError: If it cannot be kept.
    """
    parts = urlsplit("")
    port = None
    with contextlib.suppress(ValueError):  # such as [::1 without an end
        parts = urlsplit(word)
        port = parts.port
    if not parts.hostname or not port or parts.path not in ("", "/") or parts.query or "@" in parts.netloc:
        raise UsageError(f"'{word.partition('#')[0]:.120}' is no address of a served device: it is https://HOST:PORT")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    url = f"{parts.scheme}://{host}:{port}"
    file = cache / ROOM / f"{re.sub(r'[^A-Za-z0-9.-]', '_', serial or f'{parts.hostname}_{port}')}.json"
    if parts.fragment:
        code = read_code(parts.fragment)
        _check(code, parts.scheme)
        _keep(file, parts.scheme, code)
        return Address(url, code, file)
    return Address(url, _kept(file, parts.scheme, url), file)


def prove(address: Address, *, is_right: bool) -> None:
    """Forget the code before the one of an address, which the device has taken; or have that one back.

    Raises:
        OutputError: If it cannot be kept.
    """
    if address.file is not None and (before := _before(address.file)) is not None:
        _keep(address.file, urlsplit(address.url).scheme, address.code if is_right else before, anew=True)


def paired(word: str, cache: Path) -> str:
    """Return a DEVICE word without the code of a device, which is kept: it is a secret, and no part of what is told.

    Raises:
        UsageError: If it is no code, or not of that address.
        DeviceError: If adb does not reach a phone.
        OutputError: If it cannot be kept.
    """
    if not is_served(word) or "#" not in word:
        return word
    address = address_of(word, cache)
    return word.partition("#")[0] if is_adb(word) else address.url


def without_codes(words: list[str]) -> list[str]:
    """Return the words of a command line without the codes of devices."""
    marks = (PREFIX, *(f"{scheme}://" for scheme in SCHEMES))
    return [word.partition("#")[0] if any(mark in word for mark in marks) else word for word in words]


def _check(code: Code, scheme: str) -> None:
    if (scheme == "https") != (code.fingerprint is not None):
        other = "http" if scheme == "https" else "https"
        raise UsageError(f"the code is of a device that is served by {other}; {_CURE}")


def _keep(file: Path, scheme: str, code: Code, *, anew: bool = False) -> None:
    """Write what is known of a device into a file that its owner alone can read.

    Args:
        file: It.
        scheme: By which the device is served.
        code: Its code.
        anew: Whether a code that is there is forgotten; otherwise it is kept besides.
    """
    values = {"scheme": scheme, "code": code.text()}
    with contextlib.suppress(UsageError):
        before = None if anew else _before(file) or _kept(file, scheme, "")
        if before is not None and before != code:
            values["before"] = before.text()
    text = json.dumps(values)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(file, text.encode())
    except OSError as error:
        raise OutputError(f"cannot keep the device's code in '{file}': {error.strerror or error}") from error


def _before(file: Path) -> Code | None:
    """Return the code that a device had taken before one that it has not been shown yet; None where there is none."""
    try:
        word = json.loads(file.read_text(encoding="ascii")).get("before")
        return None if word is None else read_code(word)
    except (OSError, ValueError, AttributeError, UsageError):
        return None


def _kept(file: Path, scheme: str, url: str) -> Code:
    try:
        row = Reader(json.loads(file.read_text(encoding="ascii")), "device")
        if row.text("scheme") == scheme:
            return read_code(row.text("code"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, BundleError):
        raise UsageError(f"what is known of {url} cannot be read any more; {_CURE}") from None
    raise UsageError(f"the device at {url} is not known here yet; {_CURE}")
