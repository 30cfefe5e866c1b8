"""Stages as files: a range of nodes of an optimised graph, with its weights laid out for mapping."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitload.base.errors import OutputError
from splitload.base.regular import sha256_of
from splitload.bundle.manifest import File, StageEntry, TensorSpec
from splitload.bundle.validate import MAX_ORT_BYTES
from splitload.graphs.describe import tensor_spec
from splitload.graphs.folding import is_maker
from splitload.graphs.held import Held, HeldWeights
from splitload.graphs.here import HERE
from splitload.graphs.kernels import needs_fusions, needs_packing
from splitload.graphs.names import rename_weights
from splitload.graphs.observe import elem_type
from splitload.graphs.optimize import refuse_full_disk
from splitload.graphs.ortfile import lay_out
from splitload.graphs.proto import (
    all_tensors,
    external_entry,
    is_external,
    node_inputs,
    point,
    split_constants,
    tensor_bytes,
    without_traces,
)
from splitload.graphs.runtime import Beside, GraphRuntime, Refusal
from splitload.graphs.shared import StoredWeights, read_external, restoring
from splitload.graphs.stage_store import StageStore, key_of
from splitload.graphs.weights_file import Piece, places_of, write_pieces
from splitload.plan.graph import LOOKUPS, ModelGraph

_GRAPH_BYTES = 128 << 20  # room in an .ort file for all that is no weight


@dataclass(frozen=True, slots=True)
class WrittenStage:
    """A stage on disk.

    Attributes:
        graph: The .ort file, or the .onnx file where the stage has to be readable everywhere.
        weights: The file an .onnx file's weights are mapped from, or None where they are in the graph file.
        inputs: Names of what it reads: model inputs and outputs of earlier stages.
        outputs: What it gives: boundary tensors and model outputs.
        weights_bytes: Bytes of the weights that no earlier stage reads.
        shares: Names of other stages' files that it reads weights from.
        optimized: Whether the graph is to be taken as it is at first.
        read_order: Where reading ahead goes; see `StageEntry`.
        prepack: Whether its first session has to rearrange weights, as it would compute otherwise than later ones.
        reoptimize: Whether sessions that rearrange weights are optimised, too.
        makes: Whether it makes weights when it runs, see `folding`.
    """

    graph: File
    weights: File | None
    inputs: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    weights_bytes: int
    shares: tuple[str, ...] = ()
    optimized: bool = True
    read_order: tuple[int, ...] = ()
    prepack: bool = False
    reoptimize: bool = False
    makes: bool = False

    @property
    def optimize_first(self) -> bool:
        """Whether onnxruntime optimises the graph for the first session."""
        return not self.optimized or (self.prepack and self.reoptimize)

    def entry(self, name: str, blocks: tuple[int, int], *, trainable: bool = False, upgrade: bool = True) -> StageEntry:
        """Return the stage as a manifest has it, with nothing chosen yet of how it is loaded; see `StageEntry`."""
        return StageEntry(
            name=name,
            blocks=blocks,
            graph=self.graph,
            weights=self.weights,
            weights_bytes=self.weights_bytes,
            inputs=self.inputs,
            outputs=self.outputs,
            prepack=self.prepack,
            trainable=trainable,
            shares=self.shares,
            optimized=self.optimized,
            upgrade=upgrade and not self.prepack,
            read_order=self.read_order,
            reoptimize=self.reoptimize,
        )


class StageWriter:
    """Writes stages of one graph; the graph file is parsed once.

    Args:
        graph: The model to cut.
        copy_weights: Whether stages get their own weights. Without, they map the optimised model's file, linked into
            their folder: for stages that are checked and thrown away.
        stored: Weights that the folder already holds, which stages in .onnx files then read from there.
        store: Where files that were made before are taken from, and new ones kept.
        runtime: What a native graph was made for; it converts what this machine's onnxruntime cannot.
    """

    def __init__(
        self,
        graph: ModelGraph,
        *,
        copy_weights: bool = True,
        stored: StoredWeights | None = None,
        store: StageStore | None = None,
        runtime: GraphRuntime = HERE,
    ) -> None:
        import onnx

        self._copy_weights = copy_weights
        self._stored = stored
        self._store = store
        self._runtime = runtime
        self._graph = graph
        self._model = onnx.load_model(str(graph.path), format="protobuf", load_external_data=False)
        without_traces(self._model)
        self._body, self._constants = split_constants(self._model.graph)
        self._initializers = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._sparse = {sparse.values.name: sparse for sparse in self._model.graph.sparse_initializer}
        self._held: dict[Path, HeldWeights] = {}  # by the folder that stages were written to
        self._last_use: dict[str, int] = {}
        for index, node in enumerate(graph.nodes):
            self._last_use.update(dict.fromkeys(node.inputs, index))

    def write(self, start: int, end: int, folder: Path, stem: str) -> WrittenStage:
        """Write the stage of the nodes `[start, end)`.

        A stage of a native graph becomes one .ort file: onnxruntime maps it as a whole, and neither parses nor checks
        it, nor looks up the path of every weight. Other stages become an .onnx file and, where they have weights, a
        .bin file, which any version reads; so do stages too large for the .ort format, and those that share weights:
        what an earlier stage in the folder holds of a weight's first reader is read there. Write stages in their order.

        Their names are `stem` and the start of their SHA-256: whoever still reads a bundle that was replaced meanwhile
        finds a file of its own bundle or none, never one of the new bundle.

        Raises:
            OutputError: If a file cannot be written.
        """
        try:
            return self._write(start, end, folder, stem)
        except OSError as error:
            raise OutputError(f"cannot write stage '{stem}' to '{folder}': {error.strerror or error}") from error

    def _write(self, start: int, end: int, folder: Path, stem: str) -> WrittenStage:
        graph = self._graph
        model, inputs, outputs = self._stage_model(start, end, stem)
        stage = model.graph
        is_tail = graph.tail_start is not None and start >= graph.tail_start  # its weights will be written anew
        native = graph.kind == "native"
        at_load = not native and not is_tail and needs_fusions(stage)  # as it is before it restores weights
        makes = any(map(is_maker, stage.node))  # which an .ort file would do in every run for ever
        held = self._held.setdefault(folder, HeldWeights(sum(graph.weights_bytes.values())))
        names = [tensor.name for tensor in stage.initializer]
        again = [tensor for tensor in stage.initializer if graph.first_use.get(tensor.name, start) < start]
        shares: tuple[str, ...] = ()
        written = weights = None
        read_order: tuple[int, ...] = ()
        is_native = self._copy_weights and native and not is_tail
        if is_native:
            shares = held.share(again, always=makes)
            if not (shares or makes) and sum(map(tensor_bytes, stage.initializer)) <= MAX_ORT_BYTES - _GRAPH_BYTES:
                written, read_order = self._convert(model, folder, stem)
        if written is not None:
            held.add_ort(folder / written.name, names)
        else:
            if self._stored is not None:
                shares = self._share_weights(model, self._stored)
            elif self._copy_weights and not is_native and not is_tail:
                shares = held.share(again, always=True)
            if not is_tail:  # whose weights are trained by name
                rename_weights(stage)
            weights = self._write_weights(model, folder, stem, shares)
            if weights is not None:
                held.add(_places(weights.name, zip(names, stage.initializer, strict=False)))
            written = _write_graph(model, folder, stem)
        return WrittenStage(
            written,
            weights,
            inputs,
            tuple(tensor_spec(self._graph, name) for name in outputs),
            graph.segment_weights_bytes(start, end),
            shares,
            optimized=not at_load,
            read_order=read_order,
            prepack=needs_packing(stage),
            reoptimize=not at_load and not is_tail and (makes or not native),
            makes=makes,
        )

    def _stage_model(self, start: int, end: int, stem: str) -> tuple[Any, tuple[str, ...], list[str]]:
        """Return the nodes `[start, end)` as a model of their own, and the names of its inputs and outputs."""
        import onnx

        graph, source = self._graph, self._model
        made = {name for node in graph.nodes[start:end] for name in node.outputs}
        inputs = tuple(
            dict.fromkeys(name for node in graph.nodes[start:end] for name in node.inputs if name not in made)
        )
        model_outputs = set(graph.outputs)
        outputs = [
            name
            for node in graph.nodes[start:end]
            for name in node.outputs
            if name in model_outputs or self._last_use.get(name, -1) >= end
        ]
        is_last = end == len(graph.nodes)
        outputs += [name for name in graph.outputs if is_last and name in self._initializers]

        model = onnx.ModelProto(ir_version=source.ir_version, producer_name="splitload")
        model.opset_import.extend(source.opset_import)
        model.functions.extend(source.functions)
        stage = model.graph
        stage.name = stem
        nodes = self._body[start:end]
        stage.node.extend([*self._constant_nodes(nodes), *nodes])
        stage.input.extend(self._value(name, source.graph.input) for name in inputs)
        stage.output.extend(self._value(name, source.graph.output) for name in outputs)
        # in the order of first use: the order in which reading ahead pays
        ordered = dict.fromkeys(name for node in stage.node for name in node_inputs(node))
        ordered.update(dict.fromkeys(outputs))
        stage.initializer.extend(self._initializers[name] for name in ordered if name in self._initializers)
        stage.sparse_initializer.extend(self._sparse[name] for name in ordered if name in self._sparse)
        return model, inputs, outputs

    def _share_weights(self, model: Any, stored: StoredWeights) -> tuple[str, ...]:
        """Point weights of `model` at their places in other files, restored where the order differs; return these."""
        files: dict[str, None] = {}
        opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
        makers = []
        for tensor in list(model.graph.initializer):
            place = stored.find(read_external(tensor, self._graph.path.parent)) if is_external(tensor) else None
            if place is None or (place.padded is not None and opset < 10):  # Slice had no inputs before
                continue
            files[place.file] = None
            if place.turns:
                makers += restoring(model.graph, tensor, place)
            point(tensor, place.file, place.offset, place.length)
        body = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*makers, *body])
        return tuple(files)

    def _convert(self, model: Any, folder: Path, stem: str) -> tuple[File | None, tuple[int, ...]]:
        """Write the stage as an .ort file, and return the order to read it in; None where the format cannot hold it."""
        key = "" if self._store is None else self._key(_nameless(model))
        if self._store is not None and (kept := self._store.take(key, folder, stem)) is not None:
            return kept.file, kept.read_order
        unnamed = folder / f"{stem}.part.ort"
        for runtime in dict.fromkeys((HERE, self._runtime)):  # nothing is run: layouts may be those of any processor
            try:
                runtime.optimize(Beside(self._graph.path.parent, model.SerializeToString()), unnamed, "none")
                break
            except Refusal as refused:
                refuse_full_disk(folder, self._graph.source_bytes, refused)
                unnamed.unlink(missing_ok=True)
        else:
            return None, ()
        read_order = lay_out(unnamed, [tensor.name for tensor in model.graph.initializer], _tables(model.graph))
        sha256 = sha256_of(unnamed)
        path = unnamed.rename(folder / f"{stem}-{sha256[:12]}.ort")
        file = File(path.name, path.stat().st_size, sha256)
        if self._store is not None:
            self._store.keep(key, path, file, read_order)
        return file, read_order

    def _key(self, content: bytes) -> str:
        """Return the key, in a store, of what is made of `content` and of the weights beside the graph."""
        return key_of(os.fsencode(self._graph.path.parent.resolve()), content)

    def _constant_nodes(self, nodes: Iterable[Any]) -> list[Any]:
        """Return the constant nodes that `nodes` need, in topological order."""
        needed: set[int] = set()
        queue = [name for node in nodes for name in node_inputs(node)]
        while queue:
            maker = self._constants.get(queue.pop())
            if maker is not None and id(maker) not in needed:
                needed.add(id(maker))
                queue.extend(node_inputs(maker))
        makers = {id(maker): maker for maker in self._constants.values()}
        return [maker for key, maker in makers.items() if key in needed]

    def _value(self, name: str, declared: Iterable[Any]) -> Any:
        """Return the declaration of a stage's input or output.

        Inputs and outputs of the model keep theirs. Boundary tensors get a type and no shape: the rank may be unknown,
        and the layouts of onnxruntime's own operators have no shape that the file format could tell. So do outputs of
        the model where a later stage reads them: onnxruntime checks the shapes of inputs, and only warns of outputs.
        """
        import onnx

        for value in declared:
            if value.name == name:
                return value
        return onnx.helper.make_tensor_value_info(name, elem_type(self._graph.tensors[name].type), None)

    def _write_weights(self, model: Any, folder: Path, stem: str, shares: tuple[str, ...]) -> File | None:
        """Copy the external tensors of `model` into one file, each on a page of its own, and point `model` at it.

        Those that lie in a file of `shares` stay there.
        """
        tensors = [
            tensor
            for tensor in all_tensors(model.graph)
            if is_external(tensor) and external_entry(tensor)[0] not in shares
        ]
        if not tensors:
            return None
        if not self._copy_weights:
            for location in {external_entry(tensor)[0] for tensor in tensors}:
                if not (folder / location).exists():
                    (folder / location).hardlink_to(self._graph.path.parent / location)
            return None
        pieces = [self._piece(tensor) for tensor in tensors]
        file = self._weights_file(pieces, folder, stem)
        for tensor, piece, place in zip(tensors, pieces, places_of(pieces), strict=True):
            point(tensor, file.name, place, piece.length)
        return file

    def _piece(self, tensor: Any) -> Piece:
        """Return where the bytes of an external tensor lie; without a length they end with their file."""
        location, offset, length = external_entry(tensor)
        if length is None:
            length = (self._graph.path.parent / location).stat().st_size - offset
        return Piece(location, offset, length)

    def _weights_file(self, pieces: list[Piece], folder: Path, stem: str) -> File:
        """Write a file of weights, or take it from the store."""
        key = self._key(repr(pieces).encode())
        if self._store is not None and (kept := self._store.take(key, folder, stem)) is not None:
            return kept.file
        unnamed = folder / f"{stem}.part"
        size_bytes, sha256 = write_pieces(self._graph.path.parent, pieces, unnamed)
        path = unnamed.rename(folder / f"{stem}-{sha256[:12]}.bin")
        file = File(path.name, size_bytes, sha256)
        if self._store is not None:
            self._store.keep(key, path, file)
        return file


def _nameless(model: Any) -> bytes:
    """Return a stage's model as bytes, without the name that its file has in one folder and not in another."""
    name, model.graph.name = model.graph.name, "stage"
    data: bytes = model.SerializeToString()
    model.graph.name = name
    return data


def _write_graph(model: Any, folder: Path, stem: str) -> File:
    """Write an .onnx file named by what it holds."""
    data = model.SerializeToString()
    sha256 = hashlib.sha256(data).hexdigest()
    file = File(f"{stem}-{sha256[:12]}.onnx", len(data), sha256)
    (folder / file.name).write_bytes(data)
    return file


def _tables(graph: Any) -> list[str]:
    """Return names of weights of which single rows are looked up, and which nothing else reads."""
    looked_up = {node.input[0] for node in graph.node if node.op_type in LOOKUPS and not node.domain}
    read = {name for node in graph.node for name in node_inputs(node)[1 if node.op_type in LOOKUPS else 0 :]}
    read.update(value.name for value in graph.output)
    return [tensor.name for tensor in graph.initializer if tensor.name in looked_up - read]


def _places(file: str, tensors: Iterable[tuple[str, Any]]) -> dict[str, Held]:
    """Return where the tensors lie that are in this file, by the names given beside them."""
    entries = {name: external_entry(tensor) for name, tensor in tensors if is_external(tensor)}
    return {name: Held(file, at, length or 0) for name, (location, at, length) in entries.items() if location == file}
