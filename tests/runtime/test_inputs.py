"""Example inputs: what cannot be made up is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from splitload.base.errors import ModelError, UsageError
from splitload.bundle.manifest import TensorSpec
from splitload.runtime.inputs import example_inputs, read_feeds


@pytest.mark.parametrize("kind", ["seq(tensor(float))", "tensor(complex64)"])
def test_an_input_of_an_unknown_type_is_refused(kind: str) -> None:
    with pytest.raises(ModelError, match=r"input 'x' is a .*; no example of that type can be made up"):
        example_inputs([TensorSpec("x", kind, (2,))])


@pytest.mark.parametrize("kind", ["tensor(float)", "tensor(int64)", "tensor(bfloat16)", "tensor(string)"])
def test_an_input_larger_than_memory_is_refused(kind: str) -> None:
    with pytest.raises(ModelError, match=r"no example of input 'x' of shape .* fits in memory"):
        example_inputs([TensorSpec("x", kind, (10**15, 256))])


def test_a_file_that_holds_no_array_is_one_line_without_numbers_and_advice_of_others(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "cut.npy", np.arange(9))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-5])
    (tmp_path / "pickled.npy").write_bytes(b"\x80\x04N.")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty.npy").write_bytes(b"")
    what = "as a .npy array: it is another kind of file, damaged, or holds Python objects; numpy.save writes"
    expected = {**dict.fromkeys(("objects", "cut", "pickled", "zip", "empty"), what), "none": ": No such file"}
    for name, message in expected.items():
        file = tmp_path / f"{name}.npy"
        with pytest.raises(UsageError) as caught:
            read_feeds([f"x={file}"])
        told = str(caught.value)
        assert told.startswith(f"cannot read '{file}'")
        assert message in told
        assert "Errno" not in told
        assert "pickle" not in told.replace(file.name, "")
