"""Example inputs: what cannot be made up is refused in one sentence."""

from __future__ import annotations

import pytest

from splitload.errors import ModelError
from splitload.inputs import example_inputs
from splitload.manifest import TensorSpec


@pytest.mark.parametrize("kind", ["seq(tensor(float))", "tensor(complex64)"])
def test_an_input_of_an_unknown_type_is_refused(kind: str) -> None:
    with pytest.raises(ModelError, match=r"input 'x' is a .*; no example of that type can be made up"):
        example_inputs([TensorSpec("x", kind, (2,))])


@pytest.mark.parametrize("kind", ["tensor(float)", "tensor(int64)", "tensor(bfloat16)", "tensor(string)"])
def test_an_input_larger_than_memory_is_refused(kind: str) -> None:
    with pytest.raises(ModelError, match=r"no example of input 'x' of shape .* fits in memory"):
        example_inputs([TensorSpec("x", kind, (10**15, 256))])
