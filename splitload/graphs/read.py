"""Parses ONNX files, with or without the weights that lie beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from splitload.base.errors import ModelError
from splitload.graphs.proto import all_tensors, external_files, is_external
from splitload.graphs.rewrite import raw_bytes


def parse_model(path: Path) -> Any:
    """Parse the file without its external data."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"'{path}' is truncated or not an ONNX model") from error
    except OSError as error:
        raise ModelError(f"cannot read '{path}': {error.strerror}") from error
    if not model.HasField("graph") or not model.graph.output:
        raise ModelError(f"'{path}' is truncated or not an ONNX model: it holds no graph with outputs")
    return model


def read_whole(path: Path) -> Any:
    """Parse the file and read its external data into it.

    onnx's own reader refuses files of several hard links, which is how file systems and package managers save room.

    Raises:
        ModelError: If it cannot be read, or its data lies elsewhere or is truncated.
    """
    model = parse_model(path)
    external_files(model, path)
    try:
        for tensor in all_tensors(model.graph):
            if is_external(tensor):
                data = raw_bytes(tensor, path.parent)
                tensor.ClearField("data_location")
                del tensor.external_data[:]
                tensor.raw_data = data
    except OSError as error:
        raise ModelError(f"cannot read '{error.filename}': {error.strerror}") from error
    return model
