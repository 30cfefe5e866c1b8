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
        self._out.print(text, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print something the user should know."""
        self._err.print(text, markup=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; all columns but those of words are aligned to the right."""
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
        for number, column in enumerate(columns):
            numeric = all(row[number].replace(".", "").replace("-", "").isdecimal() for row in rows if row[number])
            table.add_column(column, justify="right" if numeric else "left")
        for row in rows:
            table.add_row(*(cell.replace("[", "\\[") for cell in row))
        self._out.print(table)

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show `text` while the block runs."""
        with self._err.status(text):
            yield

    @contextlib.contextmanager
    def progress(self, text: str, unit: str) -> Iterator[Show]:
        """Yield a function `show(done, total, note="")` that moves a progress bar."""
        columns: list[Any] = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        ]
        with Progress(*columns, console=self._err, transient=True) as bars:
            bar = bars.add_task(text, total=None, note="")

            def show(done: int, total: int, note: str = "") -> None:
                bars.update(bar, completed=done, total=total, note=note)

            yield show
