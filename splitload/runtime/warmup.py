"""What onnxruntime sets up once a process, begun on another thread while splitload is still being imported."""

from __future__ import annotations

import os

from splitload.runtime.capi.find import NoLibraryError, beside_module, module_is_imported, named_path


def warm_up() -> None:
    """Have onnxruntime make what it makes once a process, on another thread.

    Its Python module, if it is imported already, makes tables of operators and kernels with the first session, in 4 to
    7 ms outside Python's lock; the session made here is dropped, and has no inference threads. Otherwise the C library
    is opened and makes its environment, in 15 to 20 ms, for which every answer waits: it comes before all imports that
    it can do without. Before that is done the interpreter does not exit, nor the process fork (see `forks`).
    """
    if module_is_imported():
        import threading

        from splitload.runtime.pool import started
        from splitload.runtime.stock import first_session

        started(threading.Thread(target=first_session, name="splitload-warm-up"))
        return
    try:
        path = named_path() or beside_module()
    except NoLibraryError:  # who needs one will meet it
        return
    _open_beside(path)
    from splitload.runtime.capi.library import make_environment

    make_environment(path)


def _open_beside(path: str) -> None:
    """Open a library on another thread while this one imports `ctypes`, by what that opens libraries with itself.

    An interrupt does not end the wait for it, so it is a file and nothing that may hang; all else is opened here.
    """
    if not os.path.isfile(path):
        return
    try:
        import _struct  # noqa: F401 - `ctypes` imports it, and nothing of the kind is opened beside the library
        from _ctypes import dlopen
    except ImportError:  # there is none on Windows
        return
    from splitload.runtime.forks import make_beside

    def work() -> None:
        try:
            dlopen(path, 0)
        except (OSError, ValueError):  # who needs it will meet what goes wrong
            pass

    make_beside(work)
