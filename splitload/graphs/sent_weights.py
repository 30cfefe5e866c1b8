"""Weights of a graph that another machine optimised: only those come back that were not here before."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from splitload.base.pieces import PIECE_BYTES
from splitload.graphs.proto import all_tensors, is_external, tensor_bytes
from splitload.graphs.read import parse_model
from splitload.graphs.rewrite import EXTERNAL_FROM_BYTES, raw_bytes
from splitload.graphs.runtime import Beside, Model


class ReturnedWeight(NamedTuple):
    """Where a weight of the optimised graph lies in its file.

    Attributes:
        offset: Its first byte.
        length: Its bytes.
        sha256: Their hash.
    """

    offset: int
    length: int
    sha256: str


class SentWeights:
    """The larger weights of a model, by their content.

    Args:
        model: It.

    Raises:
        ModelError: If it cannot be read.
        OSError: If a weight cannot be read.
    """

    def __init__(self, model: Model) -> None:
        import onnx

        self._folder = model.folder if isinstance(model, Beside) else model.parent
        self._model = onnx.load_from_string(model.data) if isinstance(model, Beside) else parse_model(model)
        self._tensors: dict[str, Any] = {}
        for tensor in all_tensors(self._model.graph):
            if (is_external(tensor) or tensor.raw_data) and tensor_bytes(tensor) >= EXTERNAL_FROM_BYTES:
                digest = hashlib.sha256(raw_bytes(tensor, self._folder))
                self._tensors.setdefault(digest.hexdigest(), tensor)

    @property
    def known(self) -> tuple[str, ...]:
        """Their SHA-256."""
        return tuple(self._tensors)

    def restore(self, weights: Sequence[ReturnedWeight], new: Path, target: Path) -> None:
        """Write the file of an optimised graph's weights, out of those that were here and of what came back.

        Args:
            weights: Where each lies.
            new: The file that came back: what was not known, in that order, each once.
            target: The file to write.

        Raises:
            OSError: If it cannot be written, or what came back is not what was told.
        """
        came: dict[str, int] = {}
        place = 0
        for each in weights:
            if each.sha256 not in self._tensors and each.sha256 not in came:
                came[each.sha256] = place
                place += each.length
        with new.open("rb") as source, target.open("wb", PIECE_BYTES) as out:
            for each in weights:
                if each.sha256 in came:
                    source.seek(came[each.sha256])
                    data = source.read(each.length)
                else:
                    data = raw_bytes(self._tensors[each.sha256], self._folder)
                if len(data) != each.length or hashlib.sha256(data).hexdigest() != each.sha256:
                    raise OSError(f"weights of the optimised model are not what the device said, at {each.offset}")
                out.seek(each.offset)
                out.write(data)
