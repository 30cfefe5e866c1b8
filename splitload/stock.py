"""The runtime's own class of sessions, whatever stands at `onnxruntime.InferenceSession` by now."""

from __future__ import annotations

from typing import Any


def session_class() -> type[Any]:
    """Return the class that onnxruntime defines; imports onnxruntime.

    Who has a client library load bundles puts `splitload.InferenceSession` in place of `onnxruntime.InferenceSession`.
    That is only a name of the package; the class is taken from where it is defined: no loader calls itself.
    """
    from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession

    return InferenceSession  # type: ignore[no-any-return]
