"""Phones on a cable: the port of 'splitload serve' there, forwarded by adb to one of this machine's loopback.

Not tested on a phone.
"""

from __future__ import annotations

import re
import shutil
import subprocess

from splitload.base.errors import DeviceError, UsageError
from splitload.deploy.openapi import PORT

PREFIX = "adb:"
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_WAIT_S = 20.0


def is_adb(word: str) -> bool:
    """Return whether a DEVICE word is that of a phone."""
    return word.startswith(PREFIX)


def forwarded(word: str) -> tuple[str, str]:
    """Return the serial number that a word says, and the address that leads to the service on that phone.

    A port that is forwarded there already is taken again.

    Args:
        word: "adb:SERIAL", or "adb:SERIAL#CODE".

    Raises:
        UsageError: If it is no serial number.
        DeviceError: If adb is missing, or does not reach the phone.
    """
    serial, sign, code = word.removeprefix(PREFIX).partition("#")
    if not _SERIAL.fullmatch(serial):
        raise UsageError(f"'{serial:.80}' is no serial number of a phone; 'adb devices' shows them: adb:SERIAL")
    for line in _adb(serial, "forward", "--list").splitlines():
        whose, here, there = [*line.split(), "", "", ""][:3]
        if whose == serial and there == f"tcp:{PORT}" and (number := _port(here)) is not None:
            return serial, _url(number, sign, code)
    number = _port(_adb(serial, "forward", "tcp:0", f"tcp:{PORT}").strip())
    if number is None:
        raise DeviceError(f"adb does not say which port leads to '{serial}'; a newer one does")
    return serial, _url(number, sign, code)


def _url(port: int, sign: str, code: str) -> str:
    return f"http://127.0.0.1:{port}{f'/#{code}' if sign else ''}"


def _port(word: str) -> int | None:
    digits = word.removeprefix("tcp:")
    return int(digits) if digits.isdecimal() and 0 < int(digits) < 65536 else None


def _adb(serial: str, *words: str) -> str:
    program = shutil.which("adb")
    if program is None:
        raise DeviceError("a phone on a cable needs the program adb, which is not installed: it is in Android's tools")
    try:
        done = subprocess.run(
            [program, "-s", serial, *words],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_WAIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"adb cannot be run, or hangs: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise DeviceError(f"adb does not reach '{serial}': {lines[-1][:200]}; see 'adb devices'")
    return done.stdout
