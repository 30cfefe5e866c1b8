"""A small bundle whose last layers can be trained, data for it, and what it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save_model

from splitload import ParallelLoader
from splitload.cli import main
from splitload.deploy.arguments import Settings

CLASSES = 4
QUICK = Settings(epochs=6, batch_size=16, learning_rate=0.01)


def model(path: Path, *, samples: int | str = 1) -> Path:
    """Write a small network of convolutions, of which `head.conv` and `head.linear` come last."""
    rng = np.random.default_rng(0)
    sizes = {
        "body.conv1.weight": (6, 1, 3, 3),
        "body.conv1.bias": (6,),
        "body.conv2.weight": (8, 6, 3, 3),
        "body.conv2.bias": (8,),
        "head.conv.weight": (8, 8, 3, 3),
        "head.conv.bias": (8,),
        "head.linear.weight": (CLASSES, 8),
        "head.linear.bias": (CLASSES,),
    }
    weights = {name: rng.normal(0, 0.4 if len(size) > 1 else 0.1, size).astype("f4") for name, size in sizes.items()}

    def conv(name: str, x: str, y: str) -> list[Any]:
        return [
            helper.make_node("Conv", [x, f"{name}.weight", f"{name}.bias"], [f"{y}/c"], name=name, pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"{y}/c"], [y]),
        ]

    nodes = [
        *conv("body.conv1", "image", "a"),
        helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
        *conv("body.conv2", "b", "c"),
        *conv("head.conv", "c", "d"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Reshape", ["e", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "head.linear.weight", "head.linear.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [samples, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [samples, CLASSES])],
        [
            *(numpy_helper.from_array(value, name) for name, value in weights.items()),
            numpy_helper.from_array(np.array([1 if samples == 1 else -1, 8], dtype=np.int64), "flat"),
        ],
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def build(folder: Path, *, samples: int | str = 1, trainable: str = "head") -> Path:
    bundle = folder / "digits.splitload"
    file = model(folder / "digits.onnx", samples=samples)
    assert main(["train", str(file), "--device", "s20", "--trainable", trainable, "-o", str(bundle), "--json"]) == 0
    return bundle


def data(path: Path, seed: int = 0, count: int = 120, **changes: Any) -> Path:
    """Write images whose class is the quarter of the image that is bright."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    x = 0.3 * rng.standard_normal((count, 1, 8, 8)).astype("f4")
    for row, quarter in enumerate(y):
        down, right = divmod(int(quarter), 2)
        x[row, 0, 4 * down : 4 * down + 4, 4 * right : 4 * right + 4] += 0.5 + quarter
    arrays = {"x": x, "y": y} | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def answer(bundle: Path, tail: str | None = "default", count: int = 5) -> Any:
    images = np.random.default_rng(9).standard_normal((count, 1, 1, 8, 8)).astype("f4")
    with ParallelLoader(bundle, tail=tail, upgrade=False) as loader:
        return np.concatenate([loader.run(None, {"image": image})[0] for image in images])


def frozen(bundle: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(bundle.iterdir()) if file.is_file()}
