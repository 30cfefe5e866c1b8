"""Where onnxruntime's C library lies: where the user says, or beside the Python module, which is not imported for it.

And whether that module is imported all the same, by the program or by splitload for the class of an error.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VARIABLE = "SPLITLOAD_ORT_LIBRARY"
_brings_errors = False  # whether splitload has imported the Python module, and for the class of an error alone


class NoLibraryError(Exception):
    """There is no C library that can be used; the message says why, in words that go on a sentence."""


def named_path(named: str | os.PathLike[str] | None = None) -> str:
    """Return the library that is named, by the caller or by SPLITLOAD_ORT_LIBRARY; "" where none is."""
    return os.fspath(named or os.environ.get(VARIABLE) or "")


def beside_module() -> str:
    """Return the path of the C library that the wheel brings, without importing the Python module.

    Raises:
        NoLibraryError: If the wheel is not installed, or brings none.
    """
    folders = _module_folders()
    if not folders:
        raise NoLibraryError(f"onnxruntime is not installed, and {VARIABLE} names no library")
    for folder in folders:
        place = os.path.join(folder, "capi")
        for name in sorted(os.listdir(place) if os.path.isdir(place) else ()):
            if is_library(name, sys.platform):
                return os.path.join(place, name)
    raise NoLibraryError(f"onnxruntime in '{folders[0]}' brings no C library")


def is_library(name: str, platform: str) -> bool:
    """Return whether a file in the wheel's folder is the C library, by its name.

    Args:
        name: Name of the file.
        platform: As `sys.platform`.
    """
    if platform == "win32":
        return name.lower() == "onnxruntime.dll"
    if platform == "darwin":
        return name.startswith("libonnxruntime.") and name.endswith(".dylib")
    return name == "libonnxruntime.so" or name.startswith("libonnxruntime.so.")


def _module_folders() -> list[str]:
    """Return where the package onnxruntime lies; nothing where it is not installed."""
    if module := sys.modules.get("onnxruntime"):
        return list(getattr(module, "__path__", ()))
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is not None and (spec := find("onnxruntime", None)) is not None:
            return list(spec.submodule_search_locations or ())
    return []


def module_is_imported() -> bool:
    """Return whether the Python module is there already: a second runtime would take time and memory for nothing.

    Not where it came for an error: then the library is there, and the next loader is as those before.
    """
    return sys.modules.get("onnxruntime") is not None and not _brings_errors  # None hides it


def bring_errors() -> Any:
    """Return what has the classes of the runtime's errors, of its Python module.

    Raises:
        ImportError: If the module is not installed, or lacks numpy.
    """
    global _brings_errors
    was_there = "onnxruntime" in sys.modules
    import numpy  # noqa: F401 - without it the module prints a traceback before it raises
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    _brings_errors = _brings_errors or not was_there
    return errors
