"""Shows on a terminal that work goes on: by rich where it is installed, otherwise in one line of plain text."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

from splitload.base.packages import has
from splitload.commands.streams import fitting
from splitload.planner.report import Show


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """Show `text` while the block runs."""
    if _has_rich():
        from rich.console import Console

        with Console(stderr=True, highlight=False).status(text):
            yield
        return
    with _line() as line:
        line(text)
        yield


@contextlib.contextmanager
def bar(text: str, unit: str) -> Iterator[Show]:
    """Yield a function `show(done, total, note="")` that says how far the work is."""
    if not _has_rich():
        with _line() as line:
            yield lambda done, total, note="": line(f"{text} {done}/{total} {unit} {note}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bars:
        task = bars.add_task(text, total=None, note="")

        def show(done: int, total: int, note: str = "") -> None:
            bars.update(task, completed=done, total=total, note=note)

        yield show


def _has_rich() -> bool:
    """Return whether rich is there, and a terminal that has the signs it draws with."""
    encoding = (sys.stderr.encoding or "").lower().replace("-", "")
    return encoding.startswith("utf") and has("rich")


@contextlib.contextmanager
def _line() -> Iterator[Callable[[str], None]]:
    """Yield what shows a text in place of the one before; the line is empty at the end."""
    last = 0

    def show(text: str) -> None:
        nonlocal last
        room = shutil.get_terminal_size().columns - 1
        shown = fitting(sys.stderr, text)[:room]
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r{shown:<{min(last, room)}}")
            sys.stderr.flush()
        last = len(shown)

    try:
        yield show
    finally:
        show("")
        with contextlib.suppress(OSError):
            sys.stderr.write("\r")
            sys.stderr.flush()
