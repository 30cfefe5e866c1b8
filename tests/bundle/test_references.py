"""Files that graphs name, read without onnx: what onnx itself says, for every message that can hold a weight."""

from __future__ import annotations

import random
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from splitload.base.errors import BundleError
from splitload.bundle.references import FIELDS, MAX_DEPTH, referenced_files


def external(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def everywhere() -> onnx.ModelProto:
    """A model that names another file in each place where a tensor can stand; it is not meant to run."""
    graph = helper.make_graph([], "all", [], [], [external("w", "initializer")])
    sparse = graph.sparse_initializer.add()
    sparse.values.CopyFrom(external("v", "sparse-values"))
    sparse.indices.CopyFrom(external("i", "sparse-indices"))
    inner = helper.make_graph([], "inner", [], [], [external("w", "body")])
    model = helper.make_model(graph)
    model.training_info.add().initialization.initializer.append(external("w", "training"))
    model.training_info[0].algorithm.initializer.append(external("w", "algorithm"))
    function = model.functions.add()
    function.attribute_proto.add().t.CopyFrom(external("w", "function-default"))
    for nodes, where in ((model.graph.node, "node"), (function.node, "function")):
        node = nodes.add(op_type="If", name="a name that is long enough for two bytes of length" * 4)
        node.attribute.add().t.CopyFrom(external("w", f"{where}-t"))
        node.attribute.add().tensors.append(external("w", f"{where}-tensors"))
        node.attribute.add().g.CopyFrom(inner)
        node.attribute.add().graphs.append(inner)
        node.attribute.add(f=1.5, i=-1)
        node.attribute.add().sparse_tensor.values.CopyFrom(external("w", f"{where}-sparse"))
        node.attribute.add().sparse_tensors.add().values.CopyFrom(external("w", f"{where}-sparses"))
    return model


def test_every_place_of_a_tensor_is_found(tmp_path: Path) -> None:
    (tmp_path / "all.onnx").write_bytes(everywhere().SerializeToString())
    places = {"t", "tensors", "sparse", "sparses"}
    expected = {"initializer", "sparse-values", "sparse-indices", "body", "training", "algorithm", "function-default"}
    assert referenced_files(tmp_path / "all.onnx") == expected | {
        f"{where}-{place}" for where in ("node", "function") for place in places
    }


def test_the_fields_are_those_of_onnx() -> None:
    """Of the installed onnx: whatever message can lead to a tensor is followed."""
    todo, found = [onnx.ModelProto.DESCRIPTOR], {}
    while todo:
        message = todo.pop()
        if message.name in found:
            continue
        children = {each.number: each.message_type for each in message.fields if each.message_type is not None}
        found[message.name] = {number: child.name for number, child in children.items()}
        todo.extend(children.values())
    leads = {"TensorProto"}
    while more := {name for name, fields in found.items() if leads.intersection(fields.values())} - leads:
        leads |= more
    for name in leads - {"TensorProto"}:
        ours = FIELDS[name.removesuffix("Proto")]
        assert {number: f"{child}Proto" for number, child in ours.items()} == {
            number: child for number, child in found[name].items() if child in leads
        }, name
    assert found["TensorProto"][13] == "StringStringEntryProto"


def test_a_model_without_external_data_names_none(tmp_path: Path) -> None:
    model = helper.make_model(helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "plain", [], []))
    (tmp_path / "plain.onnx").write_bytes(model.SerializeToString())
    assert referenced_files(tmp_path / "plain.onnx") == set()


def test_what_is_no_graph_is_one_error(tmp_path: Path) -> None:
    whole, path = everywhere().SerializeToString(), tmp_path / "broken.onnx"
    chosen = random.Random(0)  # noqa: S311
    contents = [b"", b"\xff" * 40, b"\x0b", b"\x3a\x80", *(whole[:length] for length in range(1, len(whole), 37))]
    for _ in range(200):
        data = bytearray(whole)
        data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        contents.append(bytes(data))
    refused = 0
    for content in contents:
        path.write_bytes(content)
        try:
            referenced_files(path)
        except BundleError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 20


def test_graphs_without_end_are_refused(tmp_path: Path) -> None:
    graph = helper.make_graph([], "deepest", [], [])
    for _ in range(MAX_DEPTH):
        outer = helper.make_graph([helper.make_node("If", [], ["y"])], "outer", [], [])
        outer.node[0].attribute.add().g.CopyFrom(graph)
        graph = outer
    (tmp_path / "deep.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(BundleError, match="nested too deeply"):
        referenced_files(tmp_path / "deep.onnx")
