"""What the commands show: progress and notes on stderr, results on stdout, nothing but JSON with `--json`.

What is shown never decides how a command ends: signs that a terminal lacks are spelled otherwise, a reader that has
gone away is not written to any more, and without rich progress is shown in plain text.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from splitload.commands import text_layout as layout
from splitload.commands.streams import abandon, table_width, width_of, write

if TYPE_CHECKING:
    from splitload.plan.schedule import Schedule
    from splitload.planner.report import Show

_DRAWING = 60  # characters that a schedule is drawn in, beside the names of its rows
_ROW_NAMES = 10


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
    """The two output streams of a command; a `splitload.planner.report.Report`.

    Args:
        json: Whether results are printed as JSON by the caller, so that tables and text are left out.

    Attributes:
        error: Why a result could not be shown, the first time; the command goes on meanwhile.
    """

    def __init__(self, *, json: bool) -> None:
        self._json = json
        self.error: OSError | None = None

    def print(self, text: str) -> None:
        """Print a result, on a terminal wrapped at words."""
        self._show(layout.wrap(printable(text), width_of(sys.stdout)))

    def note(self, text: str) -> None:
        """Print something the user should know."""
        with contextlib.suppress(OSError):
            write(sys.stderr, layout.wrap(printable(text), width_of(sys.stderr)))

    def as_it_is(self, text: str) -> None:
        """Print lines that are no sentences, as the user should copy or scan them."""
        with contextlib.suppress(OSError):
            write(sys.stderr, text.rstrip("\n"))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; columns of numbers are aligned to the right, only text is wrapped."""
        self.print(title)
        shown = layout.table(columns, [[printable(cell) for cell in row] for row in rows], table_width())
        self._show(f"{shown}\n")

    def drawing(self, schedule: Schedule) -> None:
        """Print a schedule, as wide as the terminal allows."""
        width = table_width()
        room = _DRAWING if width is None else max(width - _ROW_NAMES - 1, 20)
        self._show(schedule.render(min(room, _DRAWING)))

    def _show(self, text: str) -> None:
        if self._json:
            return
        try:
            write(sys.stdout, text)
        except OSError as error:
            self.error = self.error or error
            abandon(sys.stdout)

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show `text` on a terminal while the block runs."""
        if not sys.stderr.isatty():
            yield
            return
        from splitload.commands import progress

        with progress.status(text):
            yield

    @contextlib.contextmanager
    def progress(self, text: str, unit: str) -> Iterator[Show]:
        """Yield a function `show(done, total, note="")` that moves a progress bar on a terminal."""
        if not sys.stderr.isatty():
            yield lambda *_, **__: None
            return
        from splitload.commands import progress

        with progress.bar(text, unit) as show:
            yield show
