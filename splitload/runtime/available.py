"""What there is here to load bundles by, and why it would be the one or the other."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from splitload.base.record import Record
from splitload.runtime.capi.find import VARIABLE, NoLibraryError, beside_module, named_path
from splitload.runtime.capi.library import version_of
from splitload.runtime.capi.table import API_VERSION

if TYPE_CHECKING:
    from splitload.runtime.engine import Engine


class Available(Record):
    """The two engines as they are here.

    Attributes:
        engine: What loads bundles: "library" or "python".
        why: Why it is that one.
        library: Path of the C library that is looked at; None where there is none.
        library_version: Version of onnxruntime that the C library is; None where it cannot be opened.
        api_version: The newest version of the C API that it has; None where that is not known.
        needed_api_version: The oldest version of the C API that will do.
        module_version: Version of the Python module; None where that is not installed.
        variable: What SPLITLOAD_ORT_LIBRARY is; None where it is not set.
    """

    engine: Literal["library", "python"]
    why: str
    library: str | None
    library_version: str | None
    api_version: int | None
    needed_api_version: int
    module_version: str | None
    variable: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return self._asdict()


def available(engine: Engine, why: str) -> Available:
    """Return what there is to load bundles by; imports the Python module.

    Args:
        engine: What was chosen, see `engine.chosen`.
        why: Why it was.
    """
    path = version = None
    try:
        path = named_path() or beside_module()
        version = version_of(path)
    except NoLibraryError:  # where that matters, `why` says it
        pass
    return Available(
        engine.name, why, path, version, _api_version(version), API_VERSION, _module_version(),
        os.environ.get(VARIABLE) or None,
    )  # fmt: skip


def _api_version(version: str | None) -> int | None:
    """Return the version of the C API that a release has: the second of its numbers, as of all since 1.0."""
    minor = (version or "").split(".")[1:2]
    return int(minor[0]) if minor and minor[0].isdecimal() else None


def _module_version() -> str | None:
    try:
        import onnxruntime as ort
    except ImportError:
        return None
    version: str = ort.__version__
    return version
