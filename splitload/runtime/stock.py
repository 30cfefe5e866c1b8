"""The runtime's own class of sessions, whatever stands at `onnxruntime.InferenceSession` by now, and paths for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def session_class() -> type[Any]:
    """Return the class that onnxruntime defines; imports onnxruntime.

    Who has a client library load bundles puts `splitload.InferenceSession` in place of `onnxruntime.InferenceSession`.
    That is only a name of the package; the class is taken from where it is defined: no loader calls itself.
    """
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


def runtime_path(path: str | Path) -> str | RawPath:
    """Return a path as onnxruntime's sessions take it.

    They take text, which they encode as UTF-8, or a path of bytes; bytes alone are a model. Bytes are needed where
    Python's encoding for files is another one (a locale with ISO-8859-1), and where a name is not in it.
    """
    text = str(path)
    return text if text.encode(errors="surrogatepass") == os.fsencode(text) else RawPath(text)


def path_option(path: Path) -> str | bytes:
    """Return a path as onnxruntime's options take it, see `runtime_path`."""
    return os.fspath(runtime_path(path))


def stock_session(model: str | Path | bytes, options: Any) -> Any:
    """Return a plain session of the runtime's on the processor.

    Args:
        model: Path or bytes of the model.
        options: An `onnxruntime.SessionOptions`; None for what it is by itself.
    """
    source = model if isinstance(model, bytes) else runtime_path(model)
    # without the fallback, which is to try the same once more, and to print about it
    return session_class()(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def session_beside(folder: Path, model: bytes, options: Any) -> Any:
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
