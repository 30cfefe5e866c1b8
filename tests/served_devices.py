"""Real services of devices, in processes of their own, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitload.studies.served_process import ServedProcess as Served

__all__ = ["Served", "served"]


@contextmanager
def served(cache: Path, *words: str) -> Iterator[Served]:
    """Yield a service that runs, and end it."""
    made = Served(cache, *words)
    try:
        yield made
    finally:
        if made.child.poll() is None:
            made.kill()
