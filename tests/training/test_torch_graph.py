"""Operators that torch runs for training without a step: each gives what onnxruntime gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from splitload.base.errors import ModelError

torch = pytest.importorskip("torch")
from splitload.training.torch_graph import run_graph  # noqa: E402 - needs torch

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(2, 4, 3, 5)).astype("f4")
ROWS = RNG.normal(size=(5, 2, 4)).astype("f4")


def values(*sizes: int) -> Any:
    return RNG.normal(0, 0.5, sizes).astype("f4")


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # operator, inputs by name, attributes
    "AveragePool, overhanging": (
        "AveragePool",
        {"x": IMAGE},
        {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
    ),
    "AveragePool, padded and overhanging": (
        "AveragePool",
        {"x": IMAGE},
        {"kernel_shape": [2, 3], "strides": [2, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1, "count_include_pad": 1},
    ),
    "AveragePool, padding not counted": (
        "AveragePool",
        {"x": IMAGE},
        {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    ),
    "ConvTranspose, with further places": (
        "ConvTranspose",
        {"x": IMAGE, "w": values(4, 3, 3, 3), "b": values(3)},
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    ),
    "Slice, backwards": (
        "Slice",
        {
            "x": ROWS,
            "s": np.array([-1, 3]),
            "e": np.array([-(2**63), 0]),
            "a": np.array([0, 2]),
            "t": np.array([-1, -2]),
        },
        {},
    ),
    "ConvTranspose": ("ConvTranspose", {"x": IMAGE, "w": values(4, 3, 2, 2), "b": values(3)}, {"strides": [2, 2]}),
    "Cos": ("Cos", {"x": ROWS}, {}),
    "DepthToSpace, columns": ("DepthToSpace", {"x": IMAGE}, {"blocksize": 2}),
    "DepthToSpace, rows": ("DepthToSpace", {"x": IMAGE}, {"blocksize": 2, "mode": "CRD"}),
    "Einsum": ("Einsum", {"x": ROWS, "w": values(4, 3)}, {"equation": "abc,cd->bad"}),
    "GRU": (
        "GRU",
        {"x": ROWS, "w": values(1, 9, 4), "r": values(1, 9, 3), "b": values(1, 18)},
        {"hidden_size": 3, "linear_before_reset": 1},
    ),
    "InstanceNormalization": ("InstanceNormalization", {"x": IMAGE, "s": values(4), "b": values(4)}, {"epsilon": 1e-3}),
    "IsNaN": ("IsNaN", {"x": np.array([0, np.nan, 1], "f4")}, {}),
    "LSTM": (
        "LSTM",
        {"x": ROWS, "w": values(2, 12, 4), "r": values(2, 12, 3), "b": values(2, 24)},
        {"hidden_size": 3, "direction": "bidirectional"},
    ),
    "Max": ("Max", {"x": ROWS, "y": values(4), "z": values(2, 1)}, {}),
    "Min": ("Min", {"x": ROWS, "y": values(4)}, {}),
    "Mish": ("Mish", {"x": ROWS}, {}),
    "ReduceMax": ("ReduceMax", {"x": ROWS, "axes": np.array([0, 2])}, {"keepdims": 0}),
    "ReduceMin": ("ReduceMin", {"x": ROWS, "axes": np.array([-1])}, {}),
    "Selu": ("Selu", {"x": ROWS}, {}),
    "Sin": ("Sin", {"x": ROWS}, {}),
    "Softsign": ("Softsign", {"x": ROWS}, {}),
    "Tile": ("Tile", {"x": ROWS, "times": np.array([1, 2, 3])}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_torch_gives_what_onnxruntime_gives(name: str) -> None:
    import onnxruntime as ort

    kind, arrays, settings = CASES[name]
    inputs = [
        helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for key, value in arrays.items()
    ]
    out = helper.make_tensor_value_info("out", TensorProto.BOOL if kind == "IsNaN" else TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node(kind, list(arrays), ["out"], **settings)], "g", inputs, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, arrays)
    found = run_graph(graph, {key: torch.from_numpy(value) for key, value in arrays.items()})["out"].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "inputs", "settings"),
    [
        ("MatMul", {"a": (2, 3), "b": (4, 5)}, {}),
        ("Concat", {"a": (2, 3), "b": (2, 3)}, {}),  # without its axis
        ("Reshape", {"a": (2, 3), "b": (5,)}, {}),
        ("AveragePool", {"a": (1, 2, 8, 8)}, {"kernel_shape": [9, 9]}),
        ("AveragePool", {"a": (1, 2, 8)}, {"kernel_shape": [2], "dilations": [2]}),
        ("Pad", {"a": (2, 3), "b": (4,)}, {"mode": "reflect"}),
        ("ConvTranspose", {"a": (1, 2, 4), "b": (2, 2, 3)}, {"output_shape": [9]}),
        ("Einsum", {"a": (2, 3)}, {"equation": "ab,bc"}),
        ("Cast", {"a": (2, 3)}, {"to": 99}),
        ("Sin", {"a": None}, {}),
    ],
)
def test_what_torch_cannot_run_is_named(kind: str, inputs: dict[str, Any], settings: dict[str, Any]) -> None:
    graph = helper.make_graph([helper.make_node(kind, list(inputs), ["y"], **settings)], "g", [], [])
    with pytest.raises(ModelError, match=f"the operator {kind} .*can"):
        run_graph(graph, {name: torch.ones(size) for name, size in inputs.items() if size is not None})


def test_an_initial_state_of_other_sizes_is_refused() -> None:
    node = helper.make_node("LSTM", ["x", "w", "r", "", "", "h"], ["y"], hidden_size=3)
    graph = helper.make_graph([node], "g", [], [])
    sizes = {"x": (5, 2, 4), "w": (1, 12, 4), "r": (1, 12, 3), "h": (1, 1, 3)}
    with pytest.raises(ModelError, match="sizes of what the operator LSTM reads do not fit"):
        run_graph(graph, {name: torch.zeros(size) for name, size in sizes.items()})


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("LSTM", {"direction": "reverse"}, "backwards, with lengths or with peepholes"),
        ("GRU", {}, "cannot be run in torch with its attributes"),
        ("LSTM", {"clip": 3.0}, "cannot be run in torch with its attributes"),
    ],
)
def test_other_recurrent_layers_are_refused(kind: str, settings: dict[str, Any], message: str) -> None:
    wide = 12 if kind == "LSTM" else 9
    graph = helper.make_graph([helper.make_node(kind, ["x", "w", "r"], ["y"], hidden_size=3, **settings)], "g", [], [])
    sizes = {"x": (5, 2, 4), "w": (1, wide, 4), "r": (1, wide, 3)}
    with pytest.raises(ModelError, match=message):
        run_graph(graph, {name: torch.zeros(size) for name, size in sizes.items()})


def test_a_stored_type_that_torch_lacks_is_named() -> None:
    from splitload.training.torch_graph import tensors_of

    graph = helper.make_graph([], "g", [], [], [helper.make_tensor("w", TensorProto.BFLOAT16, [2], [1.0, 2.0])])
    with pytest.raises(ModelError, match="'w' is of type bfloat16, which torch cannot take"):
        tensors_of(graph, torch.float32)
