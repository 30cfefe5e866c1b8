"""The runtime's own class of sessions, whatever stands at `onnxruntime.InferenceSession` by now, and paths for it."""

from __future__ import annotations

import contextlib
import os

from splitload.base.errors import MissingPackageError
from splitload.runtime.forks import making_session
from splitload.runtime.tiny import TINY_MODEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from splitload.base.regular import StrPath

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def python_module(what: str) -> Any:
    """Return onnxruntime's Python module, which is imported.

    Args:
        what: What needs it, as the error says.

    Raises:
        MissingPackageError: If it cannot be imported.
    """
    try:
        import numpy  # noqa: F401 - without it the module prints a traceback before it raises
        import onnxruntime
    except ImportError as error:
        raise missing_module(what, error) from error
    return onnxruntime


def missing_module(what: str, error: ImportError) -> MissingPackageError:
    """Return the error that says what needs the Python module, and how to install it."""
    hint = f" ({what})" if what else ""
    return MissingPackageError(
        f"onnxruntime's Python module is needed{hint} and cannot be imported ({error}): 'pip install onnxruntime'"
    )


def session_class() -> type[Any]:
    """Return the class that onnxruntime defines; imports onnxruntime.

    Who has a client library load bundles puts `splitload.InferenceSession` in place of `onnxruntime.InferenceSession`.
    That is only a name of the package; the class is taken from where it is defined: no loader calls itself.

    Raises:
        MissingPackageError: If onnxruntime cannot be imported.
    """
    python_module("a session is asked for, or what one says of its options")
    from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession

    return InferenceSession  # type: ignore[no-any-return]


class RawPath(os.PathLike[bytes]):
    """A path as the system's bytes, where those are no UTF-8 or Python means another encoding.

    Args:
        path: The path, with Python's stand-ins for what it cannot decode.
    """

    def __init__(self, path: str) -> None:
        self._bytes = os.fsencode(path)

    def __fspath__(self) -> bytes:
        return self._bytes


def runtime_path(path: StrPath) -> str | RawPath:
    """Return a path as onnxruntime's sessions take it.

    They take text, which they encode as UTF-8, or a path of bytes; bytes alone are a model. Bytes are needed where
    Python's encoding for files is another one (a locale with ISO-8859-1), and where a name is not in it.
    """
    text = os.fspath(path)
    return text if text.encode(errors="surrogatepass") == os.fsencode(text) else RawPath(text)


def path_option(path: StrPath) -> str | bytes:
    """Return a path as onnxruntime's options take it, see `runtime_path`."""
    return os.fspath(runtime_path(path))


def stock_session(model: StrPath | bytes, options: Any) -> Any:
    """Return a plain session of the runtime's on the processor.

    Args:
        model: Path or bytes of the model.
        options: An `onnxruntime.SessionOptions`; None for what it is by itself.
    """
    source = model if isinstance(model, bytes) else runtime_path(model)
    # without the fallback, which is to try the same once more, and to print about it
    return session_class()(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def tiny_session(options: Any, own_threads: bool, model: bytes = TINY_MODEL) -> Any:
    """Return a session on a small model.

    Args:
        options: Its `onnxruntime.SessionOptions`, see `without_threads`.
        own_threads: Whether sessions have threads of their own, or the process has a pool that all must use.
        model: By default the smallest one, which gives its input `x`, one float32, back.
    """
    import onnxruntime as ort

    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    without_threads(options, own_threads)
    options.log_severity_level = 4
    with making_session():
        return stock_session(model, options)


def without_threads(options: Any, own_threads: bool) -> None:
    """Give a session no inference threads of its own.

    Args:
        options: Its `onnxruntime.SessionOptions`, which are changed.
        own_threads: Whether sessions have threads of their own: then the number is that of the calling thread alone.
            Where the process has a pool that all must use, the number has to be 0.
    """
    options.use_per_session_threads = own_threads
    options.intra_op_num_threads = int(own_threads)


def first_session() -> None:
    """Make a session and drop it; whoever needs one will meet what goes wrong."""
    for own_threads in (True, False):  # the process may have a pool that all sessions must use
        with contextlib.suppress(Exception):
            import onnxruntime as ort

            tiny_session(ort.SessionOptions(), own_threads)
            return


def session_beside(folder: StrPath, model: bytes, options: Any) -> Any:
    """Return a plain session on a model whose weights lie in files of a folder; nothing is written there.

    Args:
        folder: The folder.
        model: Bytes of the model.
        options: An `onnxruntime.SessionOptions`, for models of this folder only.
    """
    try:
        options.get_session_config_entry(_WEIGHTS_FOLDER)
    except UnicodeDecodeError:  # it is set, to the bytes of a path
        pass
    except RuntimeError:  # it is not; onnxruntime warns of what is set twice
        options.add_session_config_entry(_WEIGHTS_FOLDER, path_option(folder))
    return stock_session(model, options)
