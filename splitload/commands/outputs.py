"""Saves the outputs that `splitload run -o` asks for: a file each, all of them or none."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from splitload.base.errors import OutputError, UsageError
from splitload.base.scratch import scratch_folder
from splitload.bundle.manifest import TensorSpec
from splitload.bundle.replace import refuse_in_bundle
from splitload.runtime.inputs import DTYPES

INDEX = "outputs.json"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_TYPE = re.compile(r"(?:optional\()?(?P<seq>seq\()?(?P<map>map\(\w+,)?(?P<tensor>tensor\(\w+\))\)*")


def plan_outputs(folder: Path, specs: Iterable[TensorSpec]) -> dict[str, str]:
    """Return the file of each output by its name, before the model is run.

    A tensor becomes `NAME.npy`, a sequence or map `NAME.npz`. A name with other characters than letters, digits, `.`,
    `_` and `-`, or one that differs from an earlier one in case only, gets `_` for each of them and its place among
    the outputs, from 1: the third, `a/b`, is saved in `a_b~3.npy`.

    Raises:
        UsageError: If no file can hold an output of that type.
        OutputError: If there can be no such folder, or it is a bundle or lies in one.
    """
    refuse_in_bundle(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"'{folder}' exists and is not a folder; give another -o")
    if not folder.exists() and not folder.parent.is_dir():
        raise OutputError(f"there is no folder '{folder.parent}' to make '{folder.name}' in")
    files: dict[str, str] = {}
    taken: set[str] = set()
    for place, spec in enumerate(specs, start=1):
        kind = _TYPE.fullmatch(spec.type)
        if kind is None or kind["tensor"] not in DTYPES:
            raise UsageError(f"output '{spec.name}' is a {spec.type}, which numpy's files cannot hold; leave -o out")
        stem = spec.name
        if not _PLAIN_NAME.fullmatch(stem) or stem.lower() in taken:
            stem = f"{re.sub(r'[^A-Za-z0-9._-]', '_', stem)[:100].lstrip('.')}~{place}"
        taken.add(stem.lower())
        files[spec.name] = stem + (".npz" if kind["seq"] or kind["map"] else ".npy")
    for file in (*files.values(), INDEX):
        if (folder / file).is_dir():
            raise OutputError(f"'{folder / file}' is a folder, and an output is to be saved there; give another -o")
    return files


def save_outputs(folder: Path, files: Mapping[str, str], outputs: Mapping[str, Any]) -> None:
    """Write the outputs and `outputs.json`, which says by name in which file each lies.

    In an .npz file the members of a sequence are `0`, `1` and so on; a map has two, `keys` and `values`, and a sequence
    of maps `0.keys`, `0.values` and so on. An optional output that is not there has no file.

    Args:
        folder: Where; it is made if it is not there.
        files: What `plan_outputs` returned.
        outputs: The values, by name.

    Raises:
        OutputError: If one cannot be written; then none of them is.
    """
    made = not folder.exists()
    there = {name: file for name, file in files.items() if outputs[name] is not None}
    try:
        folder.mkdir(exist_ok=True)
        try:
            with scratch_folder(folder, ".outputs-") as scratch:
                for name, file in there.items():
                    _write(scratch / file, outputs[name])
                text = json.dumps(there, ensure_ascii=False, indent=1)
                (scratch / INDEX).write_text(text, encoding="utf-8")
                for file in (*there.values(), INDEX):
                    (scratch / file).replace(folder / file)
        except BaseException:
            if made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise
    except OSError as error:
        raise OutputError(
            f"cannot save the outputs in '{folder}': {error.strerror or error}; give another place with -o"
        ) from error
    except ValueError as error:
        raise OutputError(f"cannot save the outputs in '{folder}': {error}") from error


def _write(path: Path, value: Any) -> None:
    import numpy as np

    if path.suffix == ".npy":
        np.save(path, _storable(value), allow_pickle=False)
        return
    members = {}
    for place, each in enumerate(value) if isinstance(value, list) else [(None, value)]:
        prefix = "" if place is None else f"{place}."
        if isinstance(each, dict):
            members[f"{prefix}keys"] = _storable(np.array([*each.keys()]))
            members[f"{prefix}values"] = _storable(np.array([*each.values()]))
        else:
            members[str(place)] = _storable(each)
    np.savez(path, **members)


def _storable(value: Any) -> Any:
    """Return an array as numpy stores it without pickle: Python's strings as fixed-width ones.

    Raises:
        ValueError: If a text ends with NUL, which numpy drops.
    """
    import numpy as np

    array = np.asarray(value)
    if array.dtype != object:
        return array
    text = array.astype(str)
    if not np.array_equal(text.astype(object), array):
        raise ValueError("a text ends with NUL characters, which numpy's files do not keep")
    return text
