"""An ONNX graph file and the file of its weights, changed together: weights are added, replaced and dropped."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitload.base.errors import OutputError
from splitload.graphs.proto import all_tensors, external_entry, is_external, point
from splitload.runtime.settings import EXTERNAL_FROM_BYTES as EXTERNAL_FROM_BYTES
from splitload.runtime.stock import runtime_path

_WEIGHTS = "model.bin"
_PAGE_BYTES = 4096
_CHUNK_BYTES = 8 << 20


def save_with_data(model: Any, path: Path) -> None:
    """Write a model with its larger weights in a file of the same name beside it, which ends in ".bin".

    Args:
        model: An onnx.ModelProto with its weights inside.
        path: The .onnx file; neither file is there.

    Raises:
        OutputError: If onnx cannot take the path.
        OSError: If it cannot be written.
    """
    import onnx

    if not isinstance(runtime_path(path), str):
        encoding = sys.getfilesystemencoding()
        cure = "rename it"
        if encoding != "utf-8":
            cure = f"this process has names in {encoding}: set PYTHONUTF8=1, or LC_ALL to a locale with UTF-8"
        raise OutputError(f"onnx writes no weights to '{path.parent}', whose name is not taken as UTF-8; {cure}")
    data = f"{path.stem}.bin"
    onnx.save_model(model, str(path), save_as_external_data=True, location=data, size_threshold=EXTERNAL_FROM_BYTES)


def raw_bytes(tensor: Any, folder: Path) -> bytes:
    """Return the bytes of a stored tensor as an external file would hold them.

    Args:
        tensor: An onnx.TensorProto.
        folder: Where its external data lies.
    """
    from onnx import numpy_helper

    if is_external(tensor):
        location, offset, length = external_entry(tensor)
        with (folder / location).open("rb") as file:
            file.seek(offset)
            return file.read(-1 if length is None else length)
    if tensor.raw_data:
        return bytes(tensor.raw_data)
    copy = type(tensor)()
    copy.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)))
    return bytes(copy.raw_data)


class Rewriter:
    """A graph that is changed in memory, and written back with the weights that it still names.

    Args:
        path: The .onnx file; its external data lies beside it.

    Attributes:
        model: The onnx.ModelProto; whoever changes it calls `save`.
    """

    def __init__(self, path: Path) -> None:
        import onnx

        self.model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
        self._path = path
        self._new: dict[str, bytes] = {}
        self._sources = {external_entry(tensor)[0] for tensor in all_tensors(self.model.graph) if is_external(tensor)}
        self._names = {tensor.name for tensor in self.model.graph.initializer}
        self._names |= {name for node in self.model.graph.node for name in (*node.input, *node.output)}
        self._names |= {value.name for value in (*self.model.graph.input, *self.model.graph.output)}

    def free_name(self, wish: str) -> str:
        """Return `wish`, or the next name after it that nothing in the graph has; it is taken from then on."""
        name, number = wish, 1
        while name in self._names:
            number += 1
            name = f"{wish}.{number}"
        self._names.add(name)
        return name

    def add(self, wish: str, data_type: int, dims: tuple[int, ...], data: bytes) -> str:
        """Add a weight, and return the name it got.

        Args:
            wish: The name it should have.
            data_type: As onnx numbers types.
            dims: Its shape.
            data: Its bytes, as an external file holds them.
        """
        tensor = self.model.graph.initializer.add()
        tensor.name, tensor.data_type = self.free_name(wish), data_type
        tensor.dims.extend(dims)
        self._fill(tensor, data)
        return str(tensor.name)

    def make(self, tensor: Any, nodes: list[Any]) -> None:
        """Drop a weight from the graph, and put nodes that make it before all others; its shape stays declared."""
        from onnx import helper

        graph = self.model.graph
        graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        graph.initializer.remove(tensor)
        body = list(graph.node)
        del graph.node[:]
        graph.node.extend([*nodes, *body])

    def adopt_opsets(self, versions: Mapping[str, int]) -> bool:
        """Make sure that operators of these domains mean what they did; return False where a version differs."""
        known = {entry.domain: entry.version for entry in self.model.opset_import}
        if any(known.get(domain, version) != version for domain, version in versions.items()):
            return False
        for domain in versions.keys() - known.keys():
            self.model.opset_import.add(domain=domain, version=versions[domain])
        return True

    def save(self) -> None:
        """Write the graph and the weights it names; others leave the file.

        Raises:
            OSError: If they cannot be written.
        """
        folder = self._path.parent
        made = folder / f"{_WEIGHTS}.new"
        places = []
        with made.open("wb") as out:
            count = len(self.model.graph.initializer)  # they come first; a tensor in a body may have the same name
            for number, tensor in enumerate(all_tensors(self.model.graph)):
                if not is_external(tensor):
                    continue
                out.write(b"\0" * (-out.tell() % _PAGE_BYTES))
                start = out.tell()
                if number < count and (data := self._new.get(tensor.name)) is not None:
                    out.write(data)
                else:
                    _copy(tensor, folder, out)
                places.append((tensor, start, out.tell() - start))
        for tensor, start, length in places:
            point(tensor, _WEIGHTS, start, length)
        for name in self._sources - {_WEIGHTS}:
            (folder / name).unlink(missing_ok=True)
        if places:
            made.replace(folder / _WEIGHTS)
        else:
            made.unlink()
        self._new.clear()
        self._path.write_bytes(self.model.SerializeToString())

    def _fill(self, tensor: Any, data: bytes) -> None:
        if len(data) < EXTERNAL_FROM_BYTES:
            tensor.raw_data = data
        else:
            tensor.data_location = tensor.EXTERNAL
            self._new[tensor.name] = data


def _copy(tensor: Any, folder: Path, out: Any) -> None:
    """Copy the bytes of an external tensor."""
    location, offset, length = external_entry(tensor)
    with (folder / location).open("rb") as source:
        left = os.fstat(source.fileno()).st_size - offset if length is None else length
        source.seek(offset)
        while left:
            chunk = source.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise OSError(f"'{location}' ends before its weights do")
            out.write(chunk)
            left -= len(chunk)
