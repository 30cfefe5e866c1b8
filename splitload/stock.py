"""The runtime's own class of sessions, whatever stands at `onnxruntime.InferenceSession` by now."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def session_class() -> type[Any]:
    """Return the class that onnxruntime defines; imports onnxruntime.

    Who has a client library load bundles puts `splitload.InferenceSession` in place of `onnxruntime.InferenceSession`.
    That is only a name of the package; the class is taken from where it is defined: no loader calls itself.
    """
    from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession

    return InferenceSession  # type: ignore[no-any-return]


def stock_session(model: str | Path | bytes, options: Any) -> Any:
    """Return a plain session of the runtime's on the processor.

    Args:
        model: Path or bytes of the model.
        options: An `onnxruntime.SessionOptions`.
    """
    return session_class()(model, options, providers=["CPUExecutionProvider"])


def session_beside(folder: Path, model: bytes, options: Any) -> Any:
    """Return a plain session on a model whose weights lie in files of a folder, where it stands meanwhile.

    Args:
        folder: The folder.
        model: Bytes of the model.
        options: An `onnxruntime.SessionOptions`.

    Raises:
        OSError: If it cannot be written there.
    """
    import os
    import tempfile

    handle, file = tempfile.mkstemp(dir=folder, prefix=".probe-", suffix=".onnx")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(model)
        return stock_session(file, options)
    finally:
        Path(file).unlink(missing_ok=True)
