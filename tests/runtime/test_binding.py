"""Inputs and outputs bound to memory, beside `onnxruntime.IOBinding` on a stock session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import runtime_models
from runtime_models import feeds

from splitload import ParallelLoader
from splitload.base.errors import UsageError


@pytest.fixture(scope="module", params=["stock", "one stage", "four stages"])
def session(request: pytest.FixtureRequest, chain_model: Path, chain_bundle: Path) -> Iterator[Any]:
    if request.param == "stock":
        yield ort.InferenceSession(chain_model, providers=["CPUExecutionProvider"])
        return
    one = runtime_models.bundle(chain_model, chain_model.with_name("bound.splitload"), 1)
    with ParallelLoader(one if request.param == "one stage" else chain_bundle) as model:
        yield model


@pytest.fixture
def expected(session: Any) -> dict[str, Any]:
    return dict(zip(("y", "early"), session.run(["y", "early"], feeds()), strict=True))


def bind_inputs(session: Any) -> Any:
    binding = session.io_binding()
    for name, value in feeds().items():
        binding.bind_cpu_input(name, value)
    return binding


def test_outputs_are_new_ones(session: Any, expected: dict[str, Any]) -> None:
    binding = bind_inputs(session)
    binding.bind_output("early")
    binding.bind_output("y", "cpu")
    binding.synchronize_inputs()
    session.run_with_iobinding(binding, ort.RunOptions())
    binding.synchronize_outputs()
    early, y = binding.copy_outputs_to_cpu()
    np.testing.assert_array_equal(early, expected["early"])
    np.testing.assert_array_equal(y, expected["y"])
    assert [value.shape() for value in binding.get_outputs()] == [[2, 16], [2, 16]]
    assert len(binding.get_outputs_as_ortvaluevector()) == 2


def test_memory_is_read_when_the_model_runs_and_written(session: Any, expected: dict[str, Any]) -> None:
    x, z = (np.zeros_like(value) for value in feeds().values())
    y, early = np.zeros((2, 16), np.float32), ort.OrtValue.ortvalue_from_numpy(np.zeros((2, 16), np.float32))
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_input("z", "cpu", 0, 1, z.shape, z.ctypes.data)  # 1 is ONNX's number of float
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    binding.bind_ortvalue_output("early", early)
    x[:], z[:] = feeds().values()
    for _ in range(2):
        y[:] = 0
        session.run_with_iobinding(binding)
        np.testing.assert_array_equal(y, expected["y"])
        np.testing.assert_array_equal(early.numpy(), expected["early"])


def test_values_of_the_runtime_are_bound(session: Any, expected: dict[str, Any]) -> None:
    binding = session.io_binding()
    for name, value in feeds().items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.get_outputs()[0].numpy(), expected["y"])


def test_what_is_cleared_is_bound_no_more(session: Any) -> None:
    binding = bind_inputs(session)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    binding.clear_binding_inputs()
    with pytest.raises(Exception, match=r"(?i)missing"):
        session.run_with_iobinding(binding)
    binding.clear_binding_outputs()
    assert binding.get_outputs() == []


def test_an_address_needs_type_and_shape(session: Any) -> None:
    with pytest.raises(ValueError, match="`element_type` and `shape`"):
        session.io_binding().bind_output("y", buffer_ptr=1)


def test_every_method_of_the_runtimes_binding_is_there(chain_bundle: Path) -> None:
    with ParallelLoader(chain_bundle) as model:
        missing = {name for name in dir(ort.IOBinding) if not name.startswith("_")} - set(dir(model.io_binding()))
    assert not missing, f"onnxruntime {ort.__version__} has new methods"


def refused(chain_bundle: Path, word: str, cure: str) -> None:
    with ParallelLoader(chain_bundle) as model, ParallelLoader(chain_bundle) as other:
        binding = bind_inputs(model)
        with pytest.raises(UsageError, match=cure):
            if word == "another's":
                other.run_with_iobinding(binding)
            elif word == "elsewhere":
                binding.bind_input("x", "cuda", 0, np.float32, (2, 16), 1)
            elif word == "packed":
                memory = np.zeros(16, np.uint8)
                binding.bind_input("x", "cpu", 0, 22, (2, 16), memory.ctypes.data)  # int4, two in a byte
                binding.bind_output("y")
                model.run_with_iobinding(binding)
            else:
                if word == "too small":
                    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 16), np.float32)))
                model.run_with_iobinding(binding)


CURES = {
    "another's": r"what io_binding\(\) of this loader returned",
    "elsewhere": "bind 'cpu'",
    "nothing": r"bind_output\(NAME\) says which",
    "too small": r"'y' is tensor\(float\) of \[2, 16\], its memory takes tensor\(float\) of \[1, 16\]",
    "packed": "bind an OrtValue instead",
}


@pytest.mark.parametrize(("word", "cure"), CURES.items(), ids=CURES)
def test_what_cannot_be_is_refused_in_one_line(chain_bundle: Path, word: str, cure: str) -> None:
    refused(chain_bundle, word, cure)
