"""How a bundle is written: where it may stand, and its manifest, which is checked by reading it back."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

from splitload.base.errors import OutputError
from splitload.base.sealed import seal
from splitload.bundle.delivery import CarriedTails
from splitload.bundle.manifest import FORMAT, MANIFEST, Manifest
from splitload.bundle.replace import check_place, replacing
from splitload.bundle.tails import alone, names
from splitload.bundle.validate import validate


def check_target(target: Path, cure: str = "give another place") -> None:
    """Make sure that a bundle may be written at `target`: nothing is there, or a bundle.

    Args:
        target: Where the bundle goes.
        cure: What to do where its folder cannot be written to.

    Raises:
        OutputError: If something else is there, a bundle that was personalized, or its folder cannot be written to.
    """
    check_place(target, FORMAT, cure)
    if personalized := names(target):
        raise OutputError(
            f"'{target}' holds personalized tails ({', '.join(personalized)}), which a new bundle would lose; "
            "remove its folder 'tails' to do without them, or write to another place"
        )


def writing(target: Path, tails: CarriedTails | None = None) -> AbstractContextManager[Path]:
    """Return a block that writes a bundle whole or not at all, see `replacing`; without `tails` none may be there."""
    if tails is None:
        return replacing(target, check_target, alone)

    def check(target: Path) -> None:
        check_place(target, FORMAT)
        tails.check()

    return replacing(target, check)  # its lock is held by `tails`


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, after checking that it can be read back."""
    data = manifest.to_json()
    text = json.dumps(data, indent=1)
    validate(json.loads(text))
    (folder / MANIFEST).write_text(seal(text), encoding="utf-8")
