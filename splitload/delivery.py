"""How a bundle takes the place of another one that may be in use: copied beside it, checked, and exchanged in one step.

Copying over a bundle in place is no way: equal content has equal names, and a copy first empties the files that running
processes have mapped.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from splitload.bundle import MANIFEST, read_json
from splitload.errors import BundleError, OutputError, UsageError
from splitload.manifest import Manifest, StageEntry
from splitload.regular import regular_size
from splitload.replace import check_folder, replacing
from splitload.tails import FOLDER, alone, names
from splitload.verification import Verified, check_tail, manifest_of, verify

_CURE = "'splitload train MODEL --device host -o NAME.splitload' makes one"


def install(source: str | Path, target: str | Path) -> Verified:
    """Put a copy of a bundle where another one may stand that is in use; whoever has that open keeps it.

    Only what belongs to the bundle is copied, and every byte of the copy is checked before it counts. Personalized
    tails at the target stay, if they are of the same last stage; those of the source come along. A training that ends
    during the copy writes its tail when the new bundle is in place.

    Args:
        source: A bundle of either kind, which may consist of links as in the cache of a model hub.
        target: Where it goes: nothing is there, or a bundle of the same kind.

    Returns:
        What was checked.

    Raises:
        UsageError: If both are the same.
        BundleError: If the source is damaged.
        OutputError: If it cannot be written, or tails at the target would be lost; says which bundle is there.
    """
    source, target = Path(source), Path(target)
    data = read_json(source, _CURE, "hashes")
    manifest = manifest_of(data)
    if target.exists() and source.samefile(target):
        raise UsageError(f"'{source}' and '{target}' are the same bundle")
    known: set[str] = set()

    def check(target: Path) -> None:
        check_folder(target, data["format"])
        if lost := set(names(target)) - known:
            raise OutputError(
                f"the tail '{min(lost)}' was made in '{target}' meanwhile, and would be lost; nothing was changed, "
                "install the bundle again"
            )

    # one lock for the whole bundle: no two installs wait for each other, and what is trained meanwhile waits as well
    with alone(target) if target.is_dir() else contextlib.nullcontext():
        known.update(names(target))
        with replacing(target, check) as made:
            try:
                _copy(source, [MANIFEST, *(file.name for file in manifest.files())], made)
                stage = manifest.variants[-1].stages[-1] if isinstance(manifest, Manifest) else None
                stage = stage if stage is not None and stage.trainable else None
                for name in sorted(set(names(source)) - known):
                    _copy_tail(source / FOLDER / name, made, stage)
                new = set(known)
                while True:
                    for name in sorted(new):
                        shutil.rmtree(made / FOLDER / name, ignore_errors=True)  # the source's, which came before
                        _copy_tail(target / FOLDER / name, made, stage)
                    known |= new
                    found = verify(made)
                    new = set(names(target)) - known  # where there are no locks
                    if not new:
                        return found
            except BundleError as error:
                raise BundleError(str(error).replace(str(made), str(source))) from error


def _copy(source: Path, files: Iterable[str], made: Path) -> None:
    """Copy files, each once.

    Raises:
        BundleError: If one is missing or no file.
        OutputError: If there is no room for them.
    """
    names = dict.fromkeys(files)
    try:
        needed, free = sum(regular_size(source / name) for name in names), shutil.disk_usage(made).free
    except FileNotFoundError as error:
        raise BundleError(f"'{error.filename}' is missing; copy the bundle again") from error
    if needed > free:
        raise OutputError(f"'{source.name}' needs {needed >> 20} MiB and {free >> 20} MiB are free; make room")
    for name in names:
        shutil.copyfile(source / name, made / name)


def _copy_tail(place: Path, made: Path, stage: StageEntry | None) -> None:
    """Copy a tail into a bundle.

    Args:
        place: Its folder.
        made: The bundle.
        stage: The trainable last stage of the bundle; None if it has none.

    Raises:
        OutputError: If the tail is damaged, or of another stage.
    """
    try:
        if stage is None:
            raise BundleError("the new bundle has no trainable stage")
        _, files = check_tail(place, stage)
    except BundleError as error:
        raise OutputError(
            f"the tail '{place}' would be lost ({error}); remove its folder to do without it, or choose another place"
        ) from error
    for file in sorted(files):
        copy = made / FOLDER / place.name / file.relative_to(place)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
