"""Whether a bundle holds what it should, every byte of it, and nothing else: what `splitload verify` checks.

Bundles of both kinds are checked with what a device has: hashes of all files, the manifest's own included; that no
graph reads weights from elsewhere; every version of every tail; and that nothing lies beside them. Files may be links
to regular files, as the caches of model hubs make them, and are counted; folders may not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from splitload.base.errors import BundleError
from splitload.base.fields import Reader
from splitload.base.record import Record
from splitload.base.regular import regular_size
from splitload.base.sealed import KEY
from splitload.bundle.manifest import MANIFEST, TORCH_FORMAT, File, Manifest, StageEntry
from splitload.bundle.read import check_files, check_graph, check_references, checked, read_json
from splitload.bundle.tails import CURRENT, FOLDER, UNFINISHED, counted_versions, files_of, names, read_version
from splitload.bundle.validate import file_entry, validate


class TailVersions(Record):
    """A tail that was checked.

    Attributes:
        name: Whose it is.
        versions: All that there are, in order.
        current: The one that counts; 0 for the last stage as the bundle was built.
    """

    name: str
    versions: tuple[int, ...]
    current: int


class Verified(Record):
    """What was checked and found right.

    Attributes:
        format: "splitload-bundle" or "splitload-torch".
        files: Number of files, the manifest and those of tails included.
        files_bytes: Their bytes.
        links: How many of them are links.
        manifest_hash: Whether the manifest has a hash of its own, as it does from version 2 on; without one its format
            is checked.
        tails: All tails.
        unfinished: Number of tails that are being written, or whose writer was killed; nothing reads those.
    """

    format: str
    files: int
    files_bytes: int
    links: int
    manifest_hash: bool
    tails: tuple[TailVersions, ...]
    unfinished: int


def verify(bundle: str | Path) -> Verified:
    """Check a bundle of either kind; torch is not needed.

    Args:
        bundle: The folder.

    Raises:
        BundleError: For the first thing that is wrong.
    """
    folder = Path(bundle)
    data = read_json(folder, "'splitload train MODEL --device host -o NAME.splitload' makes one", "hashes")
    manifest = checked(folder, data, manifest_of)
    check_files(folder, manifest, "hashes")
    files = {folder / MANIFEST, *(folder / file.name for file in manifest.files())}
    tails = []
    if isinstance(manifest, Manifest):
        check_references(folder, manifest)
        if manifest.training is not None:
            for name in names(folder):
                tail, its_files = check_tail(folder / FOLDER / name, manifest.variants[-1].stages[-1])
                tails.append(tail)
                files |= its_files
    unfinished = _check_nothing_else(folder, files)
    return Verified(
        format=data["format"],
        files=len(files),
        files_bytes=sum(map(regular_size, files)),
        links=sum(file.is_symlink() for file in files),
        manifest_hash=KEY in data,
        tails=tuple(tails),
        unfinished=unfinished,
    )


class FileList(Record):
    """What a device needs to know of a torch bundle: its files."""

    entries: tuple[File, ...]

    def files(self) -> Iterator[File]:
        """Yield the file of every stage."""
        return iter(self.entries)


def manifest_of(data: object) -> Manifest | FileList:
    """Return what a manifest of either kind says of its files.

    Raises:
        BundleError: If it is not as its format asks.
    """
    if not (isinstance(data, dict) and data.get("format") == TORCH_FORMAT):
        return validate(data)
    stages = Reader(data, "manifest").items("stages", at_least=1)
    return FileList(tuple(file_entry(stage.child("file")) for stage in stages))


def check_tail(place: Path, stage: StageEntry) -> tuple[TailVersions, set[Path]]:
    """Check every version of a tail; return what there is, and its files.

    Args:
        place: The tail's folder.
        stage: The trainable last stage as built.

    Raises:
        BundleError: If anything is damaged, or of another stage.
    """
    files = {place / CURRENT} if (place / CURRENT).exists() else set()
    counted = counted_versions(place)
    versions = sorted(int(each.name) for each in place.iterdir() if each.name.isdigit())
    if missing := set(counted) - set(versions):
        raise BundleError(f"'{place / CURRENT}' names version {min(missing)}, which is missing; copy the bundle again")
    known = {stage.graph.name, *([] if stage.weights is None else [stage.weights.name])}
    for version in versions:
        tail = read_version(place, version, stage, "hashes")
        check_graph(tail.graph, known)
        files.update(files_of(tail, stage))
    return TailVersions(place.name, tuple(versions), counted[-1] if counted else 0), files


def _check_nothing_else(folder: Path, files: set[Path]) -> int:
    """Make sure that a folder holds these files and nothing else; return the number of unfinished tails in it."""
    folders = {parent for file in files for parent in file.parents}
    # a tail's folder may be empty: its first training failed
    places = folder / FOLDER
    unfinished = 0
    todo = [folder]
    while todo:
        here = todo.pop()
        for each in sorted(here.iterdir()):
            if each in files:
                continue
            if here.parent == places and each.name.startswith(UNFINISHED):
                unfinished += 1
            elif each.is_symlink() and each.is_dir():
                raise BundleError(f"'{each}' is a link to a folder; only files of a bundle may be links")
            elif not each.is_dir() or not (each in folders or here == places or each == places):
                raise BundleError(
                    f"'{each}' is not part of the bundle: no hash covers it; remove it, or copy the bundle again"
                )
            else:
                todo.append(each)
    return unfinished
