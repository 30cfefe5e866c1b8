"""How a bundle takes the place of another one that may be in use: copied beside it, checked, and exchanged in one step.

Copying over a bundle in place is no way: equal content has equal names, and a copy first empties the files that running
processes have mapped.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from splitload.base.errors import BundleError, OutputError, UsageError
from splitload.base.pieces import copy_file
from splitload.base.regular import regular_size
from splitload.bundle.manifest import MANIFEST, Manifest, StageEntry
from splitload.bundle.read import checked, read_json
from splitload.bundle.replace import check_place, replacing
from splitload.bundle.tails import FOLDER, alone, names
from splitload.bundle.verification import Verified, check_tail, manifest_of, verify

_CURE = "'splitload train MODEL --device host -o NAME.splitload' makes one"


class CarriedTails(contextlib.ExitStack):
    """Personalized tails at a bundle's place, which the new bundle there takes over; a block in which none changes.

    One lock holds for the whole bundle, so that no two such blocks wait for each other; what is trained meanwhile waits
    as well, and is written into the new bundle.

    Args:
        target: The place; it may be empty.
        again: What to do where a tail is made too late to come along, for people.
    """

    def __init__(self, target: Path, again: str) -> None:
        super().__init__()
        self._target, self._again = target, again
        self._taken: set[str] | None = None  # before the first are copied none can come too late

    def __enter__(self) -> CarriedTails:
        super().__enter__()
        if self._target.is_dir():
            self.enter_context(alone(self._target))
        return self

    def take(self, made: Path, stage: StageEntry | None) -> list[str]:
        """Copy the tails that were not copied yet into the new bundle, over those of the same names there.

        Args:
            made: The new bundle.
            stage: Its trainable last stage; None if it has none.

        Returns:
            Their names.

        Raises:
            OutputError: If one is damaged, or of another stage.
        """
        taken = self._taken or set()
        new = sorted(set(names(self._target)) - taken)
        for name in new:
            shutil.rmtree(made / FOLDER / name, ignore_errors=True)
            _copy_tail(self._target / FOLDER / name, made, stage)
        self._taken = taken.union(new)
        return new

    def check(self) -> None:
        """Raise `OutputError` if there is a tail at the place that was not taken."""
        if self._taken is not None and (lost := set(names(self._target)) - self._taken):
            raise OutputError(
                f"the tail '{min(lost)}' was made in '{self._target}' meanwhile, and would be lost; nothing was "
                f"changed, {self._again} again"
            )


def install(source: str | Path, target: str | Path, *, on_stayed: Callable[[str], None] | None = None) -> Verified:
    """Put a copy of a bundle where another one may stand that is in use; whoever has that open keeps it.

    Only what belongs to the bundle is copied, and every byte of the copy is checked before it counts. Personalized
    tails at the target stay, if they are of the same last stage; those of the source come along, but for those whose
    name the target has: there its own stays. A training that ends during the copy writes its tail when the new bundle
    is in place.

    Args:
        source: A bundle of either kind, which may consist of links as in the cache of a model hub.
        target: Where it goes: nothing is there, or a bundle of the same kind.
        on_stayed: Called with the name of each tail of the source that does not come along.

    Returns:
        What was checked.

    Raises:
        UsageError: If both are the same.
        BundleError: If the source is damaged.
        OutputError: If it cannot be written, or tails at the target would be lost; says which bundle is there.
    """
    source, target = Path(source), Path(target)
    data = read_json(source, _CURE, "hashes")
    manifest = checked(source, data, manifest_of)
    if target.exists() and source.samefile(target):
        raise UsageError(f"'{source}' and '{target}' are the same bundle")
    brought = sorted(set(names(source)) - set(names(target)))

    def check(target: Path) -> None:
        check_place(target, data["format"])
        tails.check()

    with CarriedTails(target, "install the bundle") as tails, replacing(target, check) as made:
        try:
            _copy(source, [MANIFEST, *(file.name for file in manifest.files())], made)
            stage = manifest.variants[-1].stages[-1] if isinstance(manifest, Manifest) else None
            stage = stage if stage is not None and stage.trainable else None
            for name in brought:
                _copy_tail(source / FOLDER / name, made, stage)
            stayed = set(tails.take(made, stage))
            found = verify(made)
            while new := tails.take(made, stage):
                stayed.update(new)
                found = verify(made)
        except BundleError as error:
            raise BundleError(str(error).replace(str(made), str(source))) from error
    if on_stayed is not None:
        for name in sorted(stayed.intersection(names(source))):
            on_stayed(name)
    return found


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
        copy_file(source / name, made / name)


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
        copy_file(file, copy)
