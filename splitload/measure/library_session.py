"""The arms of one session where onnxruntime's Python module or numpy is not installed: the C library makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from splitload.runtime.capi.engine import LibraryEngine
from splitload.runtime.capi.library import library, module_errors
from splitload.runtime.capi.session import usual_session
from splitload.runtime.settings import MAPPED, PLAIN

# Configuration entries of each arm. Its threads are the session's own, and as many as the Python module's pool has.
ENTRIES: dict[str, dict[str, str]] = {"stock": {}, "tuned": PLAIN, "ort-format": PLAIN | MAPPED}


def opener(
    arm: str, path: str, feeds: Mapping[str, Any]
) -> Callable[[], tuple[Callable[[], list[Any]], Callable[[], dict[str, Any]]]]:
    """Return what loads a model in the way of an arm; see `Open` of the program.

    The environment is made before, as the Python module makes its own while it is imported.

    Args:
        arm: One of `ENTRIES`.
        path: The model's file.
        feeds: Its inputs, which may come later.

    Raises:
        NoLibraryError: If there is no C library.
    """
    opened = library()
    engine = LibraryEngine(opened)
    _ = opened.env

    def load() -> tuple[Callable[[], list[Any]], Callable[[], dict[str, Any]]]:
        with module_errors():
            session = usual_session(opened, path, ENTRIES[arm], optimize=arm == "stock")
            names = session.output_names()

        def run() -> list[Any]:
            values = {name: engine.value(None, value) for name, value in feeds.items()}
            with module_errors():
                return [engine.answer(value) for value in session.run(names, values, {})]

        return run, lambda: {"engine": engine.name, "runtime": engine.version}

    return load
