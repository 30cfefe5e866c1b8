"""What a planner tells of its work while it is at it: notes and progress, to whoever listens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Show = Callable[..., None]


class Report(Protocol):
    """Who is told; the console of the command line is one, and results are no part of it: they are returned."""

    def note(self, text: str) -> None:
        """Tell something the user should know."""

    def status(self, text: str) -> AbstractContextManager[None]:
        """Show `text` while the block runs."""

    def progress(self, text: str, unit: str) -> AbstractContextManager[Show]:
        """Return what yields a function `show(done, total, note="")` that says how far the work is."""


class LogReport:
    """A `Report` for programs: notes are warnings of the logger "splitload", and no progress is shown."""

    def note(self, text: str) -> None:
        """Log something the user should know."""
        logging.getLogger("splitload").warning(text)

    def status(self, text: str) -> AbstractContextManager[None]:
        """Show nothing."""
        return nullcontext()

    def progress(self, text: str, unit: str) -> AbstractContextManager[Show]:
        """Return what yields a function that shows nothing."""
        return nullcontext(lambda *_, **__: None)
