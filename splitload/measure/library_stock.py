"""The stock arm where onnxruntime's Python module or numpy is not installed: a plain session of the C library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from splitload.runtime.capi.engine import LibraryEngine
from splitload.runtime.capi.library import library, module_errors
from splitload.runtime.capi.session import stock_session


def stock(path: str, feeds: Mapping[str, Any]) -> Callable[[], tuple[Callable[[], list[Any]], Callable[[], Any]]]:
    """Return what loads a model as onnxruntime does by itself; see `Open` of the program.

    The environment is made before, as the Python module makes its own while it is imported.

    Args:
        path: The model's file.
        feeds: Its inputs, which may come later.

    Raises:
        NoLibraryError: If there is no C library.
    """
    opened = library()
    engine = LibraryEngine(opened)
    _ = opened.env

    def load() -> tuple[Callable[[], list[Any]], Callable[[], Any]]:
        with module_errors():
            session = stock_session(opened, path)
            names = session.output_names()

        def run() -> list[Any]:
            values = {name: engine.value(None, value) for name, value in feeds.items()}
            with module_errors():
                return [engine.answer(value) for value in session.run(names, values, {})]

        return run, lambda: {"engine": engine.name, "runtime": engine.version}

    return load
