"""Which bundle is of a model: the one whose manifest names the model's SHA-256, computed once and remembered."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from splitload.base.atomic import write_text
from splitload.base.cache import cache_folder
from splitload.base.errors import BundleError, OutputError
from splitload.base.record import Record
from splitload.base.sealed import is_intact, seal
from splitload.bundle.manifest import Manifest
from splitload.bundle.read import read_manifest

SUFFIX = ".splitload"
SETTLED_S = 2.0  # a younger file may change once more within one tick of its clock, and is hashed again
_CHUNK_BYTES = 8 << 20


class Match(Record):
    """The bundle of a model, or why there is none.

    Attributes:
        bundle: Its folder, or None.
        reason: One line for people.
        refused: Whether a bundle is there and is not taken, or one is named and not there.
    """

    bundle: Path | None
    reason: str
    refused: bool


def find(model: str | os.PathLike[str] | bytes, others: Iterable[str | os.PathLike[str]] = ()) -> Match:
    """Return the bundle of a model: beside its file under the same name, or one of `others`.

    Args:
        model: Path or bytes of an ONNX model, or the folder of a bundle.
        others: Folders of bundles that are tried too.
    """
    path = None if isinstance(model, bytes) else Path(model)
    if path is not None and (path.is_dir() or (path.suffix == SUFFIX and not path.exists())):
        return Match(path, "it is a bundle", False)  # or whoever reads it says why not
    named = [Path(each) for each in others]
    lying = [] if path is None or not path.suffix else [path.with_suffix(SUFFIX)]
    reasons = []
    for folder in dict.fromkeys((*lying, *named)):
        if not folder.is_dir():
            if folder in named:
                what = "no folder" if folder.exists() else "not there"
                reasons.append(f"'{folder}', named in `bundles`, is {what}")
            continue
        try:
            manifest = read_manifest(folder, "none")
            if _is_of(manifest, model if isinstance(model, bytes) else Path(model)):
                return Match(folder, f"'{folder}' is of this model", False)
            reasons.append(f"'{folder}' is of another model than this one, make it again")
        except BundleError as error:
            reasons.append(str(error))
        except OSError as error:
            reasons.append(f"cannot read '{error.filename}': {error.strerror}")
    if reasons:
        return Match(None, "; ".join(reasons), True)
    return Match(None, "no bundle is given for it" if path is None else f"no bundle lies beside '{path}'", False)


def _is_of(manifest: Manifest, model: Path | bytes) -> bool:
    """Return whether a bundle was made from a model; that of another size is not even hashed.

    Raises:
        OSError: If a file of the model cannot be read.
    """
    if isinstance(model, bytes):
        if manifest.model_data or len(model) != manifest.model_bytes:
            return False
        import hashlib

        return hashlib.sha256(model).hexdigest() == manifest.model_sha256
    files = [model, *(model.parent / name for name in manifest.model_data or ())]
    if sum(file.stat().st_size for file in files) != manifest.model_bytes:
        return False
    return sha256_of_model(files, cache_folder()) == manifest.model_sha256


def sha256_of_model(files: Sequence[Path], cache: Path | None) -> str:
    """Return the SHA-256 over a model's files, one after the other; from the cache where none has changed.

    That is told by device, inode, size and both times of change, in nanoseconds.

    Args:
        files: The model, then its external data.
        cache: The user's cache folder, or None to remember nothing.

    Raises:
        OSError: If a file cannot be read.
    """
    state = _state(files)
    memory = None if cache is None else cache / "models" / f"{state[0][0]:x}-{state[0][1]:x}.json"
    if memory is not None and (known := _recall(memory, state)) is not None:
        return known
    import hashlib

    digest = hashlib.sha256()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    sha256 = digest.hexdigest()
    settled = max(max(each[3:]) for each in state) / 1e9 < time.time() - SETTLED_S
    if memory is not None and settled and _state(files) == state:
        with contextlib.suppress(OutputError, OSError):  # it is hashed again next time
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_text(memory, seal(json.dumps({"files": state, "model_sha256": sha256})), "the hash of a model")
    return sha256


def _state(files: Sequence[Path]) -> list[list[int]]:
    found = [file.stat() for file in files]
    return [[each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns] for each in found]


def _recall(memory: Path, state: list[list[int]]) -> str | None:
    """Return the hash that was remembered for files in this state, or None."""
    try:
        text = memory.read_bytes()
        data = json.loads(text)
        if is_intact(text) and data["files"] == state:
            return str(data["model_sha256"])
    except (OSError, ValueError, RecursionError):
        pass
    return None
