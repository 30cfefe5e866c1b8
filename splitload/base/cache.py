"""The user's cache folder: where it is, if there is a place for one."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """Return `SPLITLOAD_CACHE`, or splitload's place among the user's caches; None for a user without a home.

    The folder need not exist yet.
    """
    try:
        if chosen := os.environ.get("SPLITLOAD_CACHE"):
            return Path(chosen).expanduser()
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache") / "splitload"
    except RuntimeError:  # neither HOME nor an entry among the users: many containers run so
        return None
