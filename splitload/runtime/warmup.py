"""What onnxruntime sets up once a process, begun on another thread while splitload is still being imported."""

from __future__ import annotations

from splitload.runtime.capi.find import NoLibraryError, beside_module, module_is_imported, named_path


def warm_up() -> None:
    """Have onnxruntime make what it makes once a process, on another thread.

    Its Python module, if it is imported already, makes tables of operators and kernels with the first session, in 4 to
    7 ms outside Python's lock; the session made here is dropped, and has no inference threads. Otherwise the C library
    is opened and makes its environment, in 15 to 20 ms, for which every answer waits. Before that is done the
    interpreter does not exit, nor the process fork (see `forks`).
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
    from splitload.runtime.capi.early import begin

    begin(path)
