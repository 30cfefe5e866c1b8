"""Personalized last stages of a bundle: `tails/NAME/VERSION/` beside the frozen files, which are never touched.

A version is a folder of its own with the new weights, the stage's graph file, and `tail.json`. It is written whole
before `tails/NAME/current`, a small text file that is replaced in one step, names it as its last line; the lines before
are the versions that going back leads to. Who reads sees the old tail or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.base.atomic import sync, sync_tree, write_text
from splitload.base.errors import BundleError, OutputError, UsageError, unknown_name
from splitload.base.fields import Reader
from splitload.base.record import Record
from splitload.base.regular import check_real_folder, check_regular, copy_checked, open_regular, sha256_of
from splitload.base.scratch import scratch_folder
from splitload.base.sealed import KEY, is_intact, seal
from splitload.bundle.manifest import DEFAULT_TAIL, File, StageEntry, Training
from splitload.bundle.validate import is_plain

if TYPE_CHECKING:
    import numpy as np

FOLDER = "tails"  # in the bundle
CURRENT = "current"  # in a tail's folder
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}  # some network file systems have none
UNFINISHED = (".new-", f".{CURRENT}.")  # how names of what a writer leaves begin, if it is killed
_NOTES = "tail.json"
_FORMAT = "splitload-tail"
_MAX_BYTES = 1 << 20  # of the small files
_BACK = "'splitload finetune --revert' goes back to the version before"


class Tail(Record):
    """A personalized last stage.

    Attributes:
        name: Whose it is.
        version: Counts from 1.
        graph: The stage's graph file, which reads the weights beside it.
        notes: How it was made.
    """

    name: str
    version: int
    graph: Path
    notes: Mapping[str, Any]


def names(bundle: Path) -> list[str]:
    """Return the names of the tails that a bundle has, in alphabetical order."""
    with contextlib.suppress(OSError):
        return sorted(each.name for each in (bundle / FOLDER).iterdir() if is_plain(each.name) and each.is_dir())
    return []


def check_known(bundle: Path, name: str) -> None:
    """Make sure that a bundle has a tail of that name; the default one may be absent.

    Raises:
        UsageError: If it has none, or that cannot be a tail's name.
        BundleError: If a link is in the way.
    """
    if name == DEFAULT_TAIL or _place(bundle, name).is_dir():
        return
    known = names(bundle)
    if not known:
        raise UsageError(f"'{bundle}' has no tail '{name}', and no other; 'splitload finetune --tail {name}' makes one")
    raise unknown_name("tail", name, known)


def current_version(bundle: Path, name: str) -> int:
    """Return the version of a tail that counts; 0 for the last stage as the bundle was built.

    Raises:
        UsageError: If that cannot be a tail's name.
        BundleError: If what is written there is no version.
    """
    return (0, *counted_versions(_place(bundle, name)))[-1]


def open_tail(bundle: Path, name: str, stage: StageEntry, *, verify: str = "sizes") -> Tail | None:
    """Return the current version of a tail, or None where the last stage is as the bundle was built.

    Args:
        bundle: The bundle's folder.
        name: Whose tail; one that was never made is none, and so is one that was reverted to the beginning.
        stage: The trainable last stage as built.
        verify: "none", "sizes" or "hashes" of its weights.

    Raises:
        UsageError: If that cannot be a tail's name.
        BundleError: If it is damaged, or of another bundle.
    """
    version = current_version(bundle, name)
    return read_version(_place(bundle, name), version, stage, verify) if version else None


def read_version(place: Path, version: int, stage: StageEntry, verify: str) -> Tail:
    """Return a version of a tail, whether it counts or not.

    Args:
        place: The tail's folder.
        version: Its number.
        stage: The trainable last stage as built.
        verify: "none", "sizes" or "hashes" of its files.

    Raises:
        BundleError: If it is damaged, or of another bundle.
    """
    folder = place / f"{version:04}"
    check_real_folder(folder)
    path = folder / _NOTES
    try:
        with open_regular(path) as file:
            text = file.read(_MAX_BYTES)
        row = Reader(json.loads(text), f"'{path}': tail")
    except BundleError as error:
        raise BundleError(f"{error}; or {_BACK}") from error
    except OSError as error:
        raise BundleError(f"cannot read '{path}': {error.strerror}; {_BACK}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"'{path}' is damaged: not JSON ({error}); {_BACK}") from error
    row.only("format", "version", "base", "weights", "notes", KEY)
    if row.get("format") != _FORMAT or row.get("version") != version:
        raise BundleError(f"'{path}' is not version {version} of a tail; {_BACK}")
    if verify == "hashes" and KEY in row.data and not is_intact(text):
        raise BundleError(f"'{path}' is damaged (its own SHA-256 differs); {_BACK}")
    if row.get("base") != _base(stage):
        raise BundleError(f"'{folder}' is the tail of another bundle; {_BACK}")
    weights = _weights(stage)
    if verify == "hashes":
        weights = weights._replace(sha256=row.sha256("weights"))
    for entry in (stage.graph, weights):
        if not _is_as_written(folder / entry.name, entry, verify):
            raise BundleError(f"'{folder / entry.name}' is damaged; {_BACK}")
    return Tail(place.name, version, folder / stage.graph.name, row.mapping("notes"))


def _is_as_written(file: Path, entry: File, verify: str) -> bool:
    """Return whether a file is there, with its entry's size unless `verify` is "none", and its SHA-256 for "hashes"."""
    with contextlib.suppress(OSError):
        if check_regular(file).st_size == entry.bytes:
            return verify != "hashes" or sha256_of(file) == entry.sha256
        return verify == "none"
    return False


def files_of(tail: Tail, stage: StageEntry) -> tuple[Path, ...]:
    """Return the files of a version of a tail."""
    return tail.graph, tail.graph.with_name(_weights(stage).name), tail.graph.with_name(_NOTES)


def read_weights(weights: Path, training: Training) -> dict[str, np.ndarray[Any, Any]]:
    """Return the trained weights in a file of the last stage's, by name.

    Raises:
        BundleError: If it cannot be read, is a link, or is too short.
    """
    import numpy as np

    found = {}
    try:
        with open_regular(weights) as file:
            for weight in training.weights:
                count = int(np.prod(weight.shape, dtype=np.int64))
                file.seek(weight.offset)
                found[weight.name] = np.fromfile(file, dtype=np.float32, count=count).reshape(weight.shape)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"cannot read the weights in '{weights}': {reason}") from error
    return found


def write_tail(
    bundle: Path,
    name: str,
    stage: StageEntry,
    training: Training,
    weights: Mapping[str, np.ndarray[Any, Any]],
    notes: Mapping[str, Any],
) -> Tail:
    """Write a new version of a tail and make it the current one; what was there stays.

    Args:
        bundle: The bundle's folder.
        name: Whose tail.
        stage: The trainable last stage as built.
        training: Where its weights lie.
        weights: New values of all of them.
        notes: How they were found, as JSON values.

    Raises:
        UsageError: If that cannot be a tail's name.
        BundleError: If the last stage is not what the manifest says, or a link is in the way.
        OutputError: If it cannot be written; the tail is as it was.
    """
    place = _place(bundle, name)
    version = None
    try:
        with alone(bundle):  # before anything is made in it: another bundle may take its place
            place.mkdir(parents=True, exist_ok=True)
            with scratch_folder(place, UNFINISHED[0]) as made:
                copy_checked(bundle / stage.graph.name, made / stage.graph.name, stage.graph)
                path = made / _weights(stage).name
                copy_checked(bundle / _weights(stage).name, path, _weights(stage))
                with path.open("r+b") as file:
                    for weight in training.weights:
                        file.seek(weight.offset)
                        file.write(weights[weight.name].astype("<f4").tobytes())
                counted = counted_versions(place)
                version = max([0, *counted, *(int(each.name) for each in place.iterdir() if each.name.isdigit())]) + 1
                row = {
                    "format": _FORMAT,
                    "version": version,
                    "base": _base(stage),
                    "weights": sha256_of(path),
                    "notes": dict(notes),
                }
                (made / _NOTES).write_text(seal(json.dumps(row, indent=1)), encoding="utf-8")
                made.chmod(0o755)
                sync_tree(made, read_only=True)
                folder = made.rename(place / f"{version:04}")
                sync(place)
                _write_history(place, [*counted, version])
    except OSError as error:
        raise _told(place, version, error) from error
    return Tail(name, version, folder / stage.graph.name, notes)


class Reached(Record):
    """What a tail came to.

    Attributes:
        name: Whose it is.
        version: The one that counts; 0 for the last stage as the bundle was built.
        versions: All that counted and may be gone back to, the one that counts last.
        loss: Which loss it was trained by; None where that is not known.
        valid_accuracy: Share of right classes among validation samples; None where there were none, or it is not known.
        valid_loss: Mean loss of those.
        loss_after: Mean loss that it was judged by: that, or of the training samples where there were no others.
    """

    name: str
    version: int
    versions: tuple[int, ...]
    loss: str | None = None
    valid_accuracy: float | None = None
    valid_loss: float | None = None
    loss_after: float | None = None


def reached(bundle: Path, name: str, stage: StageEntry) -> Reached:
    """Return what a tail came to, as its last training noted it.

    Raises:
        BundleError: If it is damaged.
    """
    history = tuple(counted_versions(_place(bundle, name)))
    tail = open_tail(bundle, name, stage)
    if tail is None:
        return Reached(name, 0, history)
    loss, epoch = tail.notes.get("loss"), tail.notes.get("epoch")
    noted = epoch if isinstance(epoch, dict) else {}
    figures = (noted.get(key) for key in ("valid_accuracy", "valid_loss", "loss_after"))
    return Reached(
        name,
        tail.version,
        history,
        loss if isinstance(loss, str) else None,
        *(float(figure) if isinstance(figure, int | float) else None for figure in figures),
    )


def revert(bundle: Path, name: str) -> int:
    """Go back to the version that counted before and return it; 0 is the last stage as the bundle was built.

    Raises:
        UsageError: If there is nothing to go back from.
        OutputError: If it cannot be written.
    """
    place = _place(bundle, name)
    if not counted_versions(place):
        there = ", ".join(each for each in names(bundle) if current_version(bundle, each)) or "none"
        raise UsageError(f"'{bundle}' has no personalized tail '{name}' to go back from; there are: {there}")
    version = None
    try:
        with alone(bundle):
            counted = counted_versions(place)[:-1]
            version = (0, *counted)[-1]
            _write_history(place, counted)
    except OSError as error:
        raise _told(place, version, error) from error
    return current_version(bundle, name)


def _told(place: Path, version: int | None, error: OSError) -> OutputError:
    """Return what went wrong while `version` was to count, and whether it does."""
    reason = error.strerror or error
    if (0, *counted_versions(place))[-1] != version:
        return OutputError(f"cannot write the tail to '{place}': {reason}; it is as it was")
    return OutputError(
        f"version {version} of the tail counts in '{place}', but its folder could not be brought up to date: {reason}; "
        "until it is, the version before may be back after a loss of power"
    )


def _place(bundle: Path, name: str) -> Path:
    if not is_plain(name):
        raise UsageError(f"a tail's name is of letters, digits, dots, dashes and underscores, not '{name}'")
    place = bundle / FOLDER / name
    check_real_folder(place.parent)
    check_real_folder(place)
    return place


def _weights(stage: StageEntry) -> File:
    assert stage.weights is not None  # noqa: S101 - `validate` saw to it
    return stage.weights


def _base(stage: StageEntry) -> list[str]:
    return [stage.graph.sha256, _weights(stage).sha256]


def counted_versions(place: Path) -> list[int]:
    """Return the versions of a tail that counted, the one that counts now last; of its folder.

    Raises:
        BundleError: If the file that holds them is damaged.
    """
    path = place / CURRENT
    if not os.path.lexists(path):
        return []
    try:
        with open_regular(path) as file:
            words = file.read(_MAX_BYTES).decode("ascii", "replace").split()
    except OSError as error:
        raise BundleError(f"cannot read '{path}': {error.strerror}") from error
    for word in words:
        if not (word.isdigit() and len(word) < 10 and int(word)):
            raise BundleError(
                f"'{path}' is damaged: it should hold numbers of versions, not {word[:40]!r}; without that file the "
                "bundle is as it was built"
            )
    counted = [int(word) for word in words]
    if any(version >= later for version, later in pairwise(counted)):
        raise BundleError(
            f"'{path}' is damaged: its versions must rise; without that file the bundle is as it was built"
        )
    return counted


@contextlib.contextmanager
def alone(bundle: Path) -> Iterator[None]:
    """Have no other process change the tails of a bundle or put another in its place meanwhile.

    That holds where the system has locks on folders (not on Windows, nor on some network file systems).

    Args:
        bundle: Its folder; where it is gone there is nothing to hold.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    held = False
    while not held:
        with contextlib.ExitStack() as block:
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(bundle, os.O_RDONLY)
                block.callback(os.close, descriptor)  # and the lock with it
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                except OSError as error:
                    if error.errno not in _WITHOUT_LOCKS:
                        raise
                if not os.path.samestat(os.fstat(descriptor), bundle.stat()):
                    continue  # another one was installed meanwhile
            held = True
            yield


def _write_history(place: Path, counted: list[int]) -> None:
    for left in place.glob(f"{UNFINISHED[1]}*"):  # of a process that was killed
        left.unlink(missing_ok=True)
    write_text(place / CURRENT, "".join(f"{version}\n" for version in counted), "the tail's versions")
    sync(place)
