"""The folder `NAME.splitload/` that ships, read and checked: its manifest, its files, and the files that they name."""

from __future__ import annotations

import os
import sys

try:
    import _json
except ImportError:  # another Python than CPython
    _json = None  # type: ignore[assignment]

from splitload.base.errors import BundleError, UsageError
from splitload.base.regular import open_regular, regular_size, sha256_of
from splitload.base.sealed import KEY, is_intact
from splitload.bundle.manifest import MANIFEST, File, Manifest
from splitload.bundle.validate import validate

MAX_MANIFEST_BYTES = 16 << 20


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import Any, Literal, Protocol, TypeVar

    from splitload.base.regular import StrPath

    Verify = Literal["none", "sizes", "hashes"]
    _T = TypeVar("_T")

    class HasFiles(Protocol):
        """A manifest of any format."""

        def files(self) -> Iterator[File]: ...  # noqa: D102

else:
    Verify = str


def read_manifest(folder: StrPath, verify: Verify = "sizes") -> Manifest:
    """Read and check a bundle.

    Args:
        folder: The bundle.
        verify: "none" checks the manifest only, and that no file blocks who opens it; "sizes" that every file is there
            and as long as it should be, "hashes" every byte, and that no graph reads a file which the manifest does not
            name.

    Raises:
        BundleError: If anything is amiss.
    """
    cure = "'splitload train MODEL --device host -o NAME.splitload' makes one"
    manifest = checked(folder, read_json(folder, cure, verify), validate)
    check_files(folder, manifest, verify)
    if verify == "hashes":
        check_references(folder, manifest)
    return manifest


def read_json(folder: StrPath, cure: str, verify: Verify = "sizes") -> Any:
    """Return the JSON of a bundle's manifest, of whatever format; nothing in it is checked yet but its own hash.

    Args:
        folder: The bundle.
        cure: What makes one, for the error.
        verify: With "hashes" its own hash is checked, from version 2 on.

    Raises:
        BundleError: If it cannot be read, is too large or is not JSON.
    """
    path = os.path.join(folder, MANIFEST)
    try:
        if regular_size(path) > MAX_MANIFEST_BYTES:
            raise BundleError(f"'{path}' is larger than {MAX_MANIFEST_BYTES} bytes; no manifest is")
        with open_regular(path, links=True) as file:
            text = file.read(MAX_MANIFEST_BYTES)
        data = parsed(text)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "there is no such folder" if not os.path.exists(folder) else f"it has no {MANIFEST}"
        raise BundleError(f"'{folder}' is not a bundle: {what}; {cure}") from error
    except OSError as error:
        raise BundleError(f"cannot read '{path}': {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"'{path}' is damaged: not JSON ({error}); copy the bundle again") from error
    if verify == "hashes" and isinstance(data, dict) and KEY in data and not is_intact(text):
        raise BundleError(f"'{path}' is damaged (its own SHA-256 differs); copy the bundle again")
    return data


def checked(folder: StrPath, data: Any, check: Callable[[Any], _T]) -> _T:
    """Return what `check` makes of a bundle's manifest, whatever the format.

    Raises:
        BundleError: If the manifest is not as the format asks; the message names the file.
    """
    try:
        return check(data)
    except BundleError as error:
        raise BundleError(f"'{os.path.join(folder, MANIFEST)}': {error}") from error


_SPACE = " \t\n\r"


class _Strict:
    """What the parser asks of a `json.JSONDecoder` as it is by itself."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int = float, int
    parse_constant = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}.__getitem__


def parsed(text: bytes) -> Any:
    """Return what JSON says. What is well-formed is read by the parser inside `json`, which takes 6 ms less to import.

    Raises:
        ValueError: If it is not JSON, with json's words.
        RecursionError: If it is nested too deeply.
    """
    if "json" not in sys.modules:
        try:
            words = text.decode().strip(_SPACE)
            value, end = _json.make_scanner(_Strict)(words, 0)  # type: ignore[arg-type]
        except (AttributeError, ValueError, StopIteration, SystemError):  # or `_json` is another Python's: json knows
            pass  # SystemError: it has no error to raise, whose class is in `json.decoder`
        else:
            if end == len(words):
                return value
    import json

    return json.loads(text)


def check_files(folder: StrPath, manifest: HasFiles, verify: Verify = "sizes") -> None:
    """Check the files that a manifest names.

    Raises:
        BundleError: For the first that is no regular file, or (but for "none") is missing or of the wrong size, or
            (with "hashes") changed.
        UsageError: If `verify` is none of the three words.
    """
    if verify not in ("none", "sizes", "hashes"):
        raise UsageError(f"verify is 'none', 'sizes' or 'hashes', not {verify!r}")
    for file in dict.fromkeys(manifest.files()):
        path = os.path.join(folder, file.name)
        try:
            size = regular_size(path)
            if size != file.bytes and verify != "none":
                raise BundleError(f"'{path}' has {size} bytes, the manifest says {file.bytes}; copy the bundle again")
            if verify == "hashes" and sha256_of(path) != file.sha256:
                raise BundleError(
                    f"'{path}' is not what the manifest says (SHA-256 differs): it is damaged; copy the bundle again"
                )
        except FileNotFoundError as error:
            if verify != "none":
                raise BundleError(f"'{path}' is missing; copy the bundle again") from error
        except OSError as error:
            raise BundleError(f"cannot read '{path}': {error.strerror}") from error


def check_references(folder: StrPath, manifest: Manifest) -> None:
    """Make sure that the graphs of a bundle read their weights from files that its manifest names, and from no others.

    Raises:
        BundleError: For the first that does not, or is no graph.
    """
    known = {file.name for file in manifest.files()}
    for name in sorted({file.name for file in manifest.graphs()}):
        check_graph(os.path.join(folder, name), known)


def check_graph(graph: StrPath, known: Collection[str]) -> None:
    """Make sure that a graph reads its weights from these files beside it, and from no others.

    An .ort file, in onnxruntime's own format, holds all its weights: the runtime reads no other file for it.

    Raises:
        BundleError: If it does not, or is no graph.
    """
    from pathlib import Path

    from splitload.bundle.references import referenced_files

    if os.fspath(graph).endswith(".ort"):
        return
    try:
        strange = referenced_files(Path(graph)) - set(known)
    except OSError as error:
        raise BundleError(f"cannot read '{graph}': {error.strerror}") from error
    if strange:
        raise BundleError(
            f"'{graph}' reads weights from '{min(strange)}', which its bundle does not name; do not use this bundle"
        )
