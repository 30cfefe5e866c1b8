"""`splitload cache`: what the user's cache folder holds, and how to get rid of it."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

from splitload.base.errors import OutputError
from splitload.base.phrases import count_of
from splitload.base.scratch import is_worked_in
from splitload.commands.console import Console

ROOMS = {
    "architectures": "models of many architectures, to try",
    "bench": "bundles and files of other engines, to compare",
    "canaries": "which runtimes are fit for which bundles",
    "crowd": "stages that workers of a crowd were sent",
    "deep": "synthetic models to compare",
    "devices": "served devices, and their codes",
    "exports": "models exported from torch",
    "forms": "models stored in other forms, to compare",
    "graphs": "optimised graphs",
    "heads": "models with a fresh last layer",
    "memory": "a synthetic model to measure memory with",
    "models": "which bundle is of which model",
    "natives": "native parts of bundles that cannot be written",
    "profiles": "what was measured on this machine and on served devices",
    "residency": "bundles under a ceiling, to compare",
    "searches": "interrupted searches, to resume",
    "collaborate": "the code by which devices know this server",
    "serve": "files that desks sent to this device, and its own code",
    "zoo": "models that are built in",
}


def cache(options: argparse.Namespace, console: Console, folder: Path) -> dict[str, Any]:
    """Show what is in the cache, or remove it; return what `--json` prints.

    Only what splitload puts there is counted and removed. A room that is a link stays, as its files lie elsewhere.

    Raises:
        OutputError: If something cannot be removed.
    """
    there = {name: _size(folder / name) for name in ROOMS if _is_room(folder / name)}
    total = sum(size_bytes for _, size_bytes in there.values())
    result: dict[str, Any] = {
        "cache": str(folder),
        "rooms": [
            {"name": name, "description": ROOMS[name], "files": files, "files_bytes": size_bytes}
            for name, (files, size_bytes) in there.items()
        ],
        "files_bytes": total,
    }
    if options.action == "clear":
        kept = [entry for name in there for entry in _cleared(folder / name)]
        removed = total - sum(_size(entry)[1] for entry in kept)
        console.print(f"{folder}: {removed / 1e6:.1f} MB removed; what is needed again is made again")
        for entry in kept:
            console.note(f"'{entry}' stays, as another command works in it")
        return {**result, "cleared": True}
    if there:
        console.table(
            str(folder),
            ("room", "what it holds", "files", "MB"),
            [(name, ROOMS[name], str(files), f"{size / 1e6:.1f}") for name, (files, size) in there.items()],
        )
    files = count_of(sum(files for files, _ in there.values()), "file")
    hint = "; 'splitload cache clear' removes it" if there else ""
    console.print(f"{folder}: {files}, {total / 1e6:.1f} MB{hint}")
    return {**result, "cleared": False}


def _cleared(room: Path) -> list[Path]:
    """Remove what lies in a room, and the room; return the entries that stay, as somebody works in them.

    Raises:
        OutputError: If something cannot be removed.
    """
    entries = list(room.iterdir())
    kept = [entry for entry in entries if _is_room(entry) and is_worked_in(entry)]
    try:
        for entry in entries:
            if entry not in kept:
                _remove(entry)
        if not kept:
            room.rmdir()
    except OSError as error:
        raise OutputError(f"cannot remove '{error.filename}': {error.strerror or error}") from error
    return kept


def _remove(entry: Path) -> None:
    if _is_room(entry):
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def _is_room(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _size(folder: Path) -> tuple[int, int]:
    """Return how many files lie in a folder, and their bytes; a file with several names counts once."""
    sizes = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            found = (Path(parent) / name).lstat()
            sizes[found.st_dev, found.st_ino] = found.st_size
    return len(sizes), sum(sizes.values())
