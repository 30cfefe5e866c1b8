"""What the commands show: progress and notes on stderr, results on stdout, nothing but JSON with `--json`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich import box
from rich import console as rich_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Show = Callable[..., None]


def milliseconds(seconds: float) -> str:
    """Return a duration for people."""
    return f"{seconds * 1e3:.1f} ms"


def count_of(number: int, noun: str) -> str:
    """Return "1 stage" or "4 stages"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shortened(name: str, width: int = 32) -> str:
    """Return a part of a model, "first … last", in at most `width` characters, each name without its middle."""
    first, sign, last = name.partition(" … ")
    room = width - len(sign)
    for_first = max(room // 2, room - len(last)) if last else room
    return _without_middle(first, for_first) + sign + _without_middle(last, room - min(len(first), for_first))


def printable(text: str) -> str:
    """Return text with every character that a terminal could take for a command spelled out."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def _without_middle(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    parts = [part for part in name.split("/") if part]
    ends = f"{parts[0]}/…/{parts[-1]}" if len(parts) > 2 else name
    return ends if len(ends) <= width else f"{name[: width // 2]}…{name[-((width - 1) // 2) :]}"


class Console:
    """The two output streams of a command.

    Args:
        json: Whether results are printed as JSON by the caller, so that tables and text are left out.
    """

    def __init__(self, *, json: bool) -> None:
        self._out = rich_console.Console(quiet=json, highlight=False)
        self._err = rich_console.Console(stderr=True, highlight=False)

    def print(self, text: str) -> None:
        """Print a result."""
        self._out.print(printable(text), markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print something the user should know."""
        self._err.print(printable(text), markup=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; columns of numbers are aligned to the right, only text is wrapped."""
        table = Table(box=box.SIMPLE_HEAD)
        for number, column in enumerate(columns):
            numeric = all(row[number].replace(".", "").replace("-", "").isdecimal() for row in rows if row[number])
            table.add_column(column, justify="right" if numeric else "left", no_wrap=numeric)
        for row in rows:
            table.add_row(*(printable(cell).replace("[", "\\[") for cell in row))
        self._out.print(printable(title), style="bold", markup=False, soft_wrap=True)
        self._out.print(table)

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show `text` on a terminal while the block runs."""
        with self._err.status(text) if self._err.is_terminal else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def progress(self, text: str, unit: str) -> Iterator[Show]:
        """Yield a function `show(done, total, note="")` that moves a progress bar on a terminal."""
        columns: list[Any] = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        ]
        with Progress(*columns, console=self._err, transient=True, disable=not self._err.is_terminal) as bars:
            bar = bars.add_task(text, total=None, note="")

            def show(done: int, total: int, note: str = "") -> None:
                bars.update(bar, completed=done, total=total, note=note)

            yield show
