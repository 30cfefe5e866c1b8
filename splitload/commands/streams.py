"""The standard streams as they really are: closed, without UTF-8, on a full disk, or with nobody who reads them."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

_PLAIN = str.maketrans({"÷": "/", "…": "~", "─": "-", "–": "-", "—": "-", "×": "x", "±": "~", "ε": "e", "→": ">"})


def fill_missing() -> None:
    """Have standard streams that were closed lead nowhere, so that no file that is opened later takes their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - as long as we run


def write(stream: TextIO, text: str) -> None:
    """Write a line for people; a stream whose reader has gone away is not written to any more.

    Raises:
        OSError: If the line cannot be written for another reason.
    """
    try:
        stream.write(f"{fitting(stream, text)}\n")
        stream.flush()
    except BrokenPipeError:
        abandon(stream)


def fitting(stream: TextIO, text: str) -> str:
    """Return a text in the characters that a stream can show; others are spelled as numbers."""
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    return text


def abandon(stream: TextIO) -> None:
    """Have what a stream still holds, and whatever is written to it from now on, lead nowhere."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def width_of(stream: TextIO) -> int | None:
    """Return how many characters a line of prose may have: a terminal's, or any number (None) in a file or pipe."""
    return table_width() if stream.isatty() else None


def table_width() -> int | None:
    """Return how many characters a table may take: what `COLUMNS` or the terminal says; None for any number."""
    import shutil

    return shutil.get_terminal_size((0, 0)).columns or None
