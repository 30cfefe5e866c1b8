"""The user's cache folder: where it is, if there is a place for one."""

from __future__ import annotations

import os

from splitload.base.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


def cache_place() -> str | None:
    """Return `SPLITLOAD_CACHE`, or splitload's place among the user's caches; None for a user without a home.

    The folder need not exist yet.
    """
    chosen, base = os.environ.get("SPLITLOAD_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if base and not chosen:
        return os.path.join(base, "splitload")
    place = os.path.expanduser(chosen or os.path.join("~", ".cache", "splitload"))
    return None if place.startswith("~") else place  # neither HOME nor an entry among the users: many containers


def cache_folder() -> Path | None:
    """Return `cache_place`, for who imports pathlib anyway."""
    from pathlib import Path

    place = cache_place()
    return None if place is None else Path(place)


def user_cache() -> Path:
    """Return the user's cache folder, see `cache_folder`, without what killed commands left in it.

    Raises:
        UsageError: If there is no place for one, or it is no folder.
    """
    from splitload.base.scratch import sweep  # who only loads a bundle need not pay for it

    folder = cache_folder()
    if folder is None:
        raise UsageError("there is no home folder to keep a cache in; set SPLITLOAD_CACHE to a folder")
    there = next((place for place in (folder, *folder.parents) if place.exists()), None)
    if there is not None and not there.is_dir():
        raise UsageError(f"'{there}', where the cache is to be, is no folder; set SPLITLOAD_CACHE to one")
    sweep(folder)
    return folder
