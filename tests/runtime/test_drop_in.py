"""ParallelLoader is a drop-in for `onnxruntime.InferenceSession`: same results, and same errors for same mistakes."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import runtime_models
import torch
from runtime_models import feeds

from splitload import ParallelLoader

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture(scope="module")
def session(chain_model: Path) -> Any:
    return ort.InferenceSession(chain_model, providers=["CPUExecutionProvider"])


def ortvalues(values: dict[str, Any]) -> dict[str, Any]:
    return {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()}


class Name(str):
    """A string of a class of the caller's."""

    __slots__ = ()


X, Z = feeds()["x"], feeds()["z"]
WORDS: dict[str, Any] = {
    "int": 1, "None": None, "bytes": b"q", "bytes of a name": b"x", "float": 1.5, "tuple": ("x",), "str": Name("q"),
    "empty": "", "object": object(),
}  # fmt: skip
VALUES: dict[str, Any] = {
    "None": None, "bytes": b"abc", "bytes of the size": X.tobytes(), "no bytes": b"", "complex": 1j, "bool": True,
    "set": {1}, "tuple": (1.0, 2.0), "empty dict": {}, "dict of numbers": {1: 2.0}, "range": range(3), "type": int,
    "module": np, "function": len, "ellipsis": ..., "iterator": iter([1.0]), "empty list": [], "list of None": [None],
    "list of lists": [[1], [1, 2]], "list of words": ["a"], "list of bytes": [b"a"], "list of dicts": [{}],
    "list of objects": [object()], "list of large numbers": [1 << 70], "list of complex": [1j], "word": np.str_("a"),
    "numpy's bytes": np.bytes_(b"a"), "numpy's void": np.void(b"abc"), "numpy's time": np.datetime64(1, "s"),
    "array without dimensions": np.array(1, "f"), "half": X.astype("f2"), "bools": X.astype(bool), "c8": X.astype("c8"),
    "g": X.astype("g"), "None in an array": np.array([None]), "bytes in an array": np.array([b"a"]),
    "times": np.zeros(2, "M8[s]"), "void": np.zeros(2, "V4"), "records": np.zeros(2, [("a", "f4")]),
    "masked": np.ma.MaskedArray(X), "three dimensions": X[None],
    "needs a gradient": torch.ones(2, 16, requires_grad=True), "without memory": torch.ones(2, 16, device="meta"),
    "sparse": torch.ones(2, 16).to_sparse(), "OrtValue": ort.OrtValue.ortvalue_from_numpy(X.astype("i4")),
    "date": datetime.date(2026, 1, 1), "decimal": decimal.Decimal(1), "run options": ort.RunOptions(),
}  # fmt: skip
CALLS: dict[str, tuple[Any, ...]] = {
    "all outputs": (None, feeds()),
    "empty names": ([], feeds()),
    "subset": (["early"], feeds()),
    "other order": (["early", "y"], feeds()),
    "repeated": (["y", "y"], feeds()),
    "tuple of names": (("y",), feeds()),
    "run options": (None, feeds(), ort.RunOptions()),
    "OrtValues": (None, ortvalues(feeds())),
    "OrtValue and array": (None, {"x": X, **ortvalues({"z": Z})}),
    "lists": (None, {"x": X.tolist(), "z": Z}),
    "Fortran order": (None, {"x": np.asfortranarray(X), "z": Z}),
    "strided": (None, {"x": np.repeat(X, 2, axis=1)[:, ::2], "z": Z[::-1]}),
    "read only": (None, {"x": np.frombuffer(X.tobytes(), np.float32).reshape(X.shape), "z": Z}),
    "empty batch": (None, {"x": X[:0], "z": Z}),
    "missing input": (None, {"x": X}),
    "unknown input": (None, {**feeds(), "q": Z}),
    "inner tensor as input": (None, {**feeds(), "t0": X}),
    "output as input": (None, {**feeds(), "y": X}),
    "unknown output": (["nope"], feeds()),
    "inner tensor as output": (["t0"], feeds()),
    "wrong type": (None, {"x": X.astype(np.float64), "z": Z}),
    "wrong type, late": (None, {"x": X, "z": Z.astype(np.int64)}),
    "wrong type, unneeded": (["early"], {"x": X, "z": Z.astype(np.int64)}),
    "wrong rank": (None, {"x": X[0], "z": Z}),
    "wrong dimension": (None, {"x": X[:, :5], "z": Z}),
    "wrong dimension, late": (None, {"x": X, "z": Z[:3]}),
    "wrong type in OrtValue": (None, ortvalues({"x": X.astype(np.float64), "z": Z})),
    "wrong dimension in OrtValue": (None, ortvalues({"x": X[:, :5].copy(), "z": Z})),
    "objects": (None, {"x": X.astype(object), "z": Z}),
    "words": (None, {"x": np.array([["a"]]), "z": Z}),
    "a number": (None, {"x": 3, "z": Z}),
    "a numpy scalar": (None, {"x": np.float32(3), "z": Z}),
    "a word": (None, {"x": "a", "z": Z}),
    "a dict": (None, {"x": {"a": 1}, "z": Z}),
    "no feeds": (None, None),
    "list of feeds": (None, [X]),
    "names as one string": ("y", feeds()),
    "names that are no strings": ([3], feeds()),
    "names that are no list": (3, feeds()),
    "input name that is no string": (None, {**feeds(), 1: X}),
    "wrong run options": (None, feeds(), "fast"),
    "names that are false": (False, feeds()),
    "several names in an array": (np.array(["y", "early"]), feeds()),
    "wrong names of no feeds": ([3], None),
    "wrong names, and an input missing": ([3], {"x": X}),
    **{f"x is {kind}": (None, {"x": value, "z": Z}) for kind, value in VALUES.items()},
    **{f"z is {kind}": (None, {"x": X, "z": value}) for kind, value in VALUES.items()},
    **{f"an unknown input is {kind}": (None, {**feeds(), "q": value}) for kind, value in VALUES.items()},
    **{f"{kind} names the only input": (None, {word: X}) for kind, word in WORDS.items()},
    **{f"{kind} names an input instead of x": (None, {word: X, "z": Z}) for kind, word in WORDS.items()},
    **{f"{kind} names a further input": (None, {**feeds(), word: X}) for kind, word in WORDS.items()},
    **{f"{kind} names an output": (["y", word], feeds()) for kind, word in WORDS.items()},
}


@pytest.fixture(scope="module")
def bundles(chain_model: Path, chain_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A bundle of several stages, and one of a single stage, whose arguments the Python module checks itself."""
    return [chain_bundle, runtime_models.bundle(chain_model, tmp_path_factory.mktemp("one") / "one.splitload", 1)]


@pytest.mark.parametrize("arguments", CALLS.values(), ids=CALLS)
def test_drop_in(bundles: list[Path], session: Any, arguments: tuple[Any, ...]) -> None:
    def outcome(run: Callable[..., Any]) -> Any:
        try:
            return run(*arguments)
        except Exception as error:
            return type(error)

    expected = outcome(session.run)
    for bundle in bundles:
        with ParallelLoader(bundle) as model:
            got = outcome(model.run)
        if not isinstance(expected, list):
            assert got == expected
            continue
        assert isinstance(got, list)
        for mine, stock in zip(got, expected, strict=True):
            assert (type(mine), mine.dtype, mine.shape) == (type(stock), stock.dtype, stock.shape)
            assert np.allclose(mine, stock, atol=1e-5)


@pytest.mark.parametrize("num_stages", [1, 2])
@pytest.mark.parametrize("names", [None, ["y"], ["x"], ["w"]], ids=str)
@pytest.mark.parametrize("missing", ["x", "w"])
def test_an_input_that_is_none_is_not_there(
    missing: str, names: list[str] | None, num_stages: int, tmp_path: Path
) -> None:
    graph = "g (float[1,4] x, float[1,4] w) => (float[1,4] y, float[1,4] x, float[1,4] w) { a = Sin(x)\n y = Sin(a) }"
    stock, bundle = small(lambda: models.text(graph), tmp_path, num_stages)
    given = {name: None if name == missing else np.ones((1, 4), np.float32) for name in "xw"}
    with ParallelLoader(bundle) as model:
        if missing == "w":
            for mine, theirs in zip(model.run(names, given), stock.run(names, given), strict=True):
                assert (mine is None and theirs is None) or np.array_equal(mine, theirs)
        elif names is None or names == ["y"]:  # a session runs all nodes, a bundle the stages that are needed
            with pytest.raises(Exception, match="Missing Input: x") as caught:
                model.run(names, given)
            with pytest.raises(type(caught.value), match="Missing Input: x"):
                stock.run(names, given)


def test_bytes_are_numbers_where_bytes_are_taken_and_nowhere_else(tmp_path: Path) -> None:
    graph = "g (uint8[n] x) => (uint8[n] y) { a = Identity(x)\n y = Add(a, a) }"
    for num_stages in (1, 2):
        _, bundle = small(lambda: models.text(graph), tmp_path, num_stages)
        with ParallelLoader(bundle) as model:
            assert model.run(None, {"x": b"ab"})[0].tolist() == [194, 196]


def small(build: Callable[[], onnx.ModelProto], folder: Path, num_stages: int = 2) -> tuple[Any, Path]:
    path = folder / "model.onnx"
    onnx.save(build(), path)
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]), runtime_models.bundle(
        path, folder / f"{num_stages}.splitload", num_stages=num_stages
    )


@pytest.mark.parametrize("build", [runtime_models.chain, runtime_models.strings, runtime_models.shapeless])
def test_inputs_and_outputs_are_described_as_by_a_session(build: Any, tmp_path: Path) -> None:
    stock, bundle = small(build, tmp_path)
    with ParallelLoader(bundle) as model:
        for mine, theirs in ((model.get_inputs(), stock.get_inputs()), (model.get_outputs(), stock.get_outputs())):
            assert [(arg.name, arg.type, arg.shape) for arg in mine] == [
                (arg.name, arg.type, arg.shape) for arg in theirs
            ]


@pytest.mark.parametrize(
    "words", [np.array(["a", "Bc"]), np.array(["a", "Bc"], dtype=object), ["a", "Bc"]], ids=["str", "object", "list"]
)
def test_string_tensors(words: Any, tmp_path: Path) -> None:
    stock, bundle = small(runtime_models.strings, tmp_path)
    with ParallelLoader(bundle) as model:
        (got,), (expected,) = model.run(None, {"words": words}), stock.run(None, {"words": words})
        assert got.dtype == expected.dtype
        assert got.tolist() == expected.tolist()
        with pytest.raises(Exception, match="data type") as caught:
            model.run(None, {"words": np.ones(2, np.float32)})
        with pytest.raises(type(caught.value)):
            stock.run(None, {"words": np.ones(2, np.float32)})


def test_sequence_outputs(tmp_path: Path) -> None:
    stock, bundle = small(runtime_models.sequences, tmp_path)
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    with ParallelLoader(bundle) as model:
        (got,), (expected,) = model.run(None, {"x": x}), stock.run(None, {"x": x})
    assert isinstance(got, list)
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_outputs_of_unknown_rank(tmp_path: Path) -> None:
    _, bundle = small(runtime_models.shapeless, tmp_path)
    with ParallelLoader(bundle) as model:
        (got,) = model.run(None, {"x": np.ones(4, np.float32), "shape": np.array([2, 1, 2])})
    assert got.shape == (2, 1, 2)


@pytest.mark.parametrize("num_stages", [1, 2])
def test_arrays_in_the_other_byte_order_are_what_they_say(num_stages: int, chain_model: Path, tmp_path: Path) -> None:
    bundle = runtime_models.bundle(chain_model, tmp_path / "model.splitload", num_stages)
    swapped = {name: value.astype(value.dtype.newbyteorder()) for name, value in feeds().items()}
    with ParallelLoader(bundle) as model:
        expected = model.run(None, feeds())
        binding = model.io_binding()
        for name, value in swapped.items():
            binding.bind_cpu_input(name, value)
        for name in ("y", "early"):
            binding.bind_output(name)
        model.run_with_iobinding(binding)
        for got in (model.run(None, swapped), binding.copy_outputs_to_cpu()):
            assert all(np.array_equal(mine, right) for mine, right in zip(got, expected, strict=True))
