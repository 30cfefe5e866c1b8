"""Files of samples: what an array is called, and values that fit the model's types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitload.base.errors import UsageError
from splitload.bundle.manifest import Manifest, TensorSpec
from splitload.bundle.read import read_manifest
from splitload.deploy.samples import read_samples

GOLDEN = Path(__file__).parent / "golden" / "v1-trainable.splitload"


def manifest(*inputs: TensorSpec, output: tuple[int | str, ...] = ("n", 2)) -> Manifest:
    """Return that of a trainable bundle, with other inputs and another output."""
    read = read_manifest(GOLDEN)
    return read._replace(inputs=inputs or read.inputs, outputs=(TensorSpec("logits", "tensor(float)", output),))


def spec(name: str, kind: str = "float", *sizes: int) -> TensorSpec:
    return TensorSpec(name, f"tensor({kind})", ("n", *sizes))


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


ROWS, CLASSES = np.ones((3, 2), "f4"), np.array([0, 1, 1])


def test_labels_may_be_called_anything(tmp_path: Path) -> None:
    file = saved(tmp_path, x=np.ones((3, 3), "f4"), kind=CLASSES)
    assert read_samples(file, manifest(), None, "kind").target.tolist() == [0, 1, 1]
    with pytest.raises(UsageError, match=r"has no array 'y'; it needs \['x', 'y'\] and has \['kind', 'x'\]"):
        read_samples(file, manifest(), None)


def test_an_input_that_is_called_y(tmp_path: Path) -> None:
    only = manifest(spec("y", "float", 2))
    samples = read_samples(saved(tmp_path, x=ROWS, y=CLASSES), only, None)
    assert (samples.inputs["y"].shape, samples.target.tolist()) == ((3, 2), [0, 1, 1])
    samples = read_samples(saved(tmp_path, y=ROWS, c=CLASSES), only, None, "c")
    assert (samples.inputs["y"].shape, samples.target.tolist()) == ((3, 2), [0, 1, 1])
    both = manifest(spec("y", "float", 2), spec("z", "float", 2))
    for arrays, model in (({"y": ROWS}, only), ({"y": ROWS, "z": ROWS}, both)):
        with pytest.raises(UsageError, match=r"has an input 'y', which is what labels are called too.*--labels NAME"):
            read_samples(saved(tmp_path, **arrays), model, None)
    assert read_samples(saved(tmp_path, y=ROWS, z=ROWS, c=CLASSES), both, None, "c").count == 3


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("int8", np.array([0, 200, 1]), "'x' has values from 0 to 200; int8 holds -128 to 127"),
        ("uint8", np.array([0, 1, 256], "u2"), "values from 0 to 256; uint8 holds 0 to 255"),
        ("int32", np.array([0, 1, -(2**31) - 1]), "int32 holds"),
        ("int64", np.array([0, 1, 2**63], "u8"), "int64 holds"),
        ("float16", np.array([0, 1, 70000.0]), "'x' holds 70000; float16 holds at most 65504"),
        ("float16", np.array([0, 1, 70000]), "'x' holds 70000; float16 holds at most 65504"),
        ("float", np.array([0, 1, -1e300]), r"'x' holds -1e\+300; float32 holds at most"),
    ],
)
def test_values_that_the_models_type_does_not_hold_are_refused(
    tmp_path: Path, kind: str, value: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_samples(saved(tmp_path, x=value, y=CLASSES), manifest(spec("x", kind)), None)


def test_values_that_fit_are_taken(tmp_path: Path) -> None:
    file = saved(tmp_path, x=np.array([-128, 0, 127]), y=CLASSES)
    assert read_samples(file, manifest(spec("x", "int8")), None).inputs["x"].tolist() == [-128, 0, 127]


def test_one_unit_tells_two_classes_apart(tmp_path: Path) -> None:
    one = manifest(output=("n", 1))
    x = np.ones((3, 3), "f4")
    assert read_samples(saved(tmp_path, x=x, y=CLASSES), one, None).loss == "binary-cross-entropy"
    assert read_samples(saved(tmp_path, x=x, y=CLASSES), manifest(output=("n",)), None).loss == "binary-cross-entropy"
    assert read_samples(saved(tmp_path, x=x, y=CLASSES[:, None]), one, "mse").target.dtype == np.float32
    with pytest.raises(UsageError, match=r"from 0 to 1; there are 0 to 2 \(--loss mse takes outputs\)"):
        read_samples(saved(tmp_path, x=x, y=np.arange(3)), one, None)
    with pytest.raises(UsageError, match="binary-cross-entropy needs an output of one unit"):
        read_samples(saved(tmp_path, x=x, y=CLASSES), manifest(), "binary-cross-entropy")


@pytest.mark.parametrize("kind", ["i8", "u1", "?", "f4", "f8", "f2"])
@pytest.mark.parametrize("loss", [None, "binary-cross-entropy"])
def test_classes_of_one_unit_may_be_of_any_type(tmp_path: Path, kind: str, loss: str | None) -> None:
    one = manifest(output=("n", 1))
    x = np.ones((3, 3), "f4")
    samples = read_samples(saved(tmp_path, x=x, y=CLASSES.astype(kind)), one, loss)
    assert (samples.loss, samples.target.dtype, samples.target.tolist()) == ("binary-cross-entropy", "i8", [0, 1, 1])
    if loss is not None or np.dtype(kind).kind != "f":
        column = read_samples(saved(tmp_path, x=x, y=CLASSES.astype(kind)[:, None]), one, loss)
        assert (column.loss, column.target.tolist()) == ("binary-cross-entropy", [0, 1, 1])


@pytest.mark.parametrize("kind", ["f4", "?"])
def test_classes_of_several_units_may_be_of_any_type(tmp_path: Path, kind: str) -> None:
    samples = read_samples(saved(tmp_path, x=np.ones((3, 3), "f4"), y=CLASSES.astype(kind)), manifest(), None)
    assert (samples.loss, samples.target.dtype, samples.target.tolist()) == ("cross-entropy", "i8", [0, 1, 1])


@pytest.mark.parametrize(("output", "rows"), [(("n", 1), (3, 1)), (("n",), (3,))])
def test_zeros_and_ones_that_may_be_outputs_are_asked_about(
    tmp_path: Path, output: tuple[int | str, ...], rows: tuple[int, ...]
) -> None:
    one = manifest(output=output)
    file = saved(tmp_path, x=np.ones((3, 3), "f4"), y=CLASSES.astype("f4").reshape(rows))
    with pytest.raises(UsageError, match=r"holds 0 and 1 as float32.*--loss binary-cross-entropy or --loss mse"):
        read_samples(file, one, None)
    assert read_samples(file, one, "mse").target.shape == rows
    assert read_samples(file, one, "binary-cross-entropy").target.tolist() == [0, 1, 1]
    outputs = saved(tmp_path, x=np.ones((3, 3), "f4"), y=np.array([0, 2, 1], "f4").reshape(rows))
    assert read_samples(outputs, one, None).loss == "mse"


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 1e300])
def test_numbers_that_are_no_classes_are_refused(tmp_path: Path, value: float) -> None:
    file = saved(tmp_path, x=np.ones((3, 3), "f4"), y=np.array([0, 1, value]))
    with pytest.raises(UsageError, match="'y' must hold a class for each sample, whole numbers"):
        read_samples(file, manifest(output=("n", 1)), "binary-cross-entropy")
    with pytest.raises(UsageError, match=r"'y' must hold finite outputs of shape \['samples', 1\]"):
        read_samples(file, manifest(output=("n", 1)), None)


def test_bools_are_taken_as_outputs_where_that_is_said(tmp_path: Path) -> None:
    file = saved(tmp_path, x=np.ones((3, 3), "f4"), y=np.eye(3, 2, dtype=bool))
    assert read_samples(file, manifest(), "mse").target.tolist() == [[1, 0], [0, 1], [0, 0]]
