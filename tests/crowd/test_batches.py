"""Data in a file as inputs, and outputs joined again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from splitload.base.errors import ModelError, OutputError, StageError, UsageError
from splitload.bundle.manifest import TensorSpec
from splitload.crowd.batches import Batches, check_output, joined, save
from splitload.runtime.capi.elements import BY_TYPE
from splitload.runtime.capi.memory import memory_of
from splitload.runtime.capi.tensor import tensor_of


def test_inputs_are_taken_from_the_first_axis(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", a=np.arange(6).reshape(6, 1), b=np.arange(12))
    specs = [TensorSpec("a", "tensor(int64)", ("n", 1)), TensorSpec("b", "tensor(int64)", (2,))]
    batches = Batches(tmp_path / "d.npz", specs)
    given = list(batches)
    assert batches.count == len(given) == 6
    assert given[2]["a"].tolist() == [[2]] and given[2]["b"].tolist() == [4, 5]


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.ones(3))
    (tmp_path / "d.npz").write_text("no archive")
    for name in ("d.npy", "d.npz"):
        with pytest.raises(UsageError, match=f"{name}' is no .npz file; numpy.savez writes one"):
            Batches(tmp_path / name, [])


@pytest.mark.parametrize("shape", [(), None])
def test_a_batch_that_cannot_be_split_is_one_line(tmp_path: Path, shape: tuple[int, ...] | None) -> None:
    np.savez(tmp_path / "d.npz", a=np.ones(3))
    with pytest.raises(ModelError, match="no batch can be split"):
        Batches(tmp_path / "d.npz", [TensorSpec("a", "tensor(double)", shape)])


def test_outputs_are_joined_and_those_of_failed_inputs_are_nan_or_nought() -> None:
    good = {"f": np.ones((1, 2)), "i": np.array([3]), "s": np.array(1.5)}
    arrays = joined([StageError("it fails"), good, good])
    assert np.isnan(arrays["f"][0]).all() and arrays["f"][1:].tolist() == [[1, 1], [1, 1]]
    assert arrays["i"].tolist() == [0, 3, 3]
    assert arrays["s"].tolist()[1:] == [1.5, 1.5]
    with pytest.raises(ModelError, match="cannot be joined"):
        joined([good, {**good, "f": np.ones((1, 3))}])


def test_outputs_are_saved_by_any_name_and_with_numbers_that_numpy_lacks(tmp_path: Path) -> None:
    memory = memory_of(np.array([[1.0, -2.5]], np.float32).view(np.uint16)[:, 1::2].copy())
    bfloat16 = tensor_of(memory._replace(element=BY_TYPE["tensor(bfloat16)"]))
    save(tmp_path / "o.npz", joined([{"file": bfloat16, "/a/b:0": np.ones(1)}, StageError("it fails")]))
    saved = np.load(tmp_path / "o.npz", allow_pickle=False)
    np.testing.assert_array_equal(saved["file"], [[1.0, -2.5], [np.nan, np.nan]])
    assert saved["/a/b:0"].tolist()[0] == 1


def test_outputs_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    save(tmp_path / "o.npz", {"a": np.ones(2)})
    assert np.load(tmp_path / "o.npz")["a"].tolist() == [1, 1]
    assert [each.name for each in tmp_path.iterdir()] == ["o.npz"]
    with pytest.raises(OutputError, match="no folder"):
        check_output(tmp_path / "none" / "o.npz")
