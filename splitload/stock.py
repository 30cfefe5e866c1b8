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
