"""Arrays are found among weights by all their bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from splitload.graphs.shared import WeightIndex


def saved(folder: Path, arrays: dict[str, np.ndarray]) -> onnx.GraphProto:
    """Return a graph whose weights lie in a file of the folder."""
    tensors = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors))
    onnx.save_model(model, str(folder / "model.onnx"), save_as_external_data=True, size_threshold=0)
    return onnx.load_model(str(folder / "model.onnx"), load_external_data=False).graph


def test_arrays_that_differ_in_one_bit_are_told_apart(tmp_path: Path) -> None:
    first = np.arange(5000, dtype=np.float32).reshape(50, 100)
    other, negative, nan = first.copy(), first.copy(), first.copy()
    other[25, 37] += 1  # which no sample may have seen
    negative[0, 0], nan[3, 3] = -0.0, np.nan
    index = WeightIndex(saved(tmp_path, {"first": first, "other": other, "again": first, "nan": nan}), tmp_path, None)
    names = {name: index.find(each) for name, each in (("first", first), ("other", other), ("nan", nan))}
    assert {name: found and found.tensor.name for name, found in names.items()} == {name: name for name in names}
    assert index.find(negative) is None
    assert index.find(first.astype(np.float64)) is None
    assert index.find(first.reshape(100, 50)) is None


def test_of_equal_weights_the_first_counts_and_once_it_is_gone_none(tmp_path: Path) -> None:
    value = np.ones((40, 40), np.float32)
    index = WeightIndex(saved(tmp_path, {"first": value, "second": value}), tmp_path, None)
    found = index.find(value)
    assert found is not None
    assert found.tensor.name == "first"
    index.drop(found)
    assert index.find(value) is None
