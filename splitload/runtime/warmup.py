"""What onnxruntime sets up once a process, begun on another thread while splitload is still being imported."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import Any

from splitload.runtime.forks import making_session
from splitload.runtime.pool import started
from splitload.runtime.stock import stock_session

# <ir_version: 7, opset_import: ["" : 13]> g (float[1] x) => (float[1] y) { y = Identity(x) }
_MODEL = (
    b'\x08\x07:9\n\x12\n\x01x\x12\x01y"\x08Identity:\x00\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


def warm_up() -> None:
    """Have onnxruntime make its tables of operators and kernels, if it is imported already.

    It makes them with the first session of a process, in 4 to 7 ms outside Python's lock. The session made here is
    dropped, and has no inference threads. Before that is done the interpreter does not exit, nor the process fork
    (see `forks`).
    """
    if "onnxruntime" not in sys.modules:
        return
    started(threading.Thread(target=_first_session, name="splitload-warm-up"))


def tiny_session(options: Any, own_threads: bool) -> Any:
    """Return a session on the smallest model, which gives its input `x`, one float32, back.

    Args:
        options: Its `onnxruntime.SessionOptions`, see `without_threads`.
        own_threads: Whether sessions have threads of their own, or the process has a pool that all must use.
    """
    import onnxruntime as ort

    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    without_threads(options, own_threads)
    options.log_severity_level = 4
    with making_session():
        return stock_session(_MODEL, options)


def without_threads(options: Any, own_threads: bool) -> None:
    """Give a session no inference threads of its own.

    Args:
        options: Its `onnxruntime.SessionOptions`, which are changed.
        own_threads: Whether sessions have threads of their own: then the number is that of the calling thread alone.
            Where the process has a pool that all must use, the number has to be 0.
    """
    options.use_per_session_threads = own_threads
    options.intra_op_num_threads = int(own_threads)


def _first_session() -> None:
    for own_threads in (True, False):  # the process may have a pool that all sessions must use
        with contextlib.suppress(Exception):  # whoever needs a session will meet it
            import onnxruntime as ort

            tiny_session(ort.SessionOptions(), own_threads)
            return
