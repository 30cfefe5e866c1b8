"""Weights stand in an .ort file in the order asked for, nothing else changes; what is not understood stays."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import control_models
import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import floats

from splitload.graphs import ortfile
from splitload.graphs.observe import plain_options
from splitload.graphs.ortfile import ALIGNMENT_BYTES, lay_out
from splitload.runtime.inputs import example_inputs
from splitload.runtime.session import open_session

assert control_models  # registers its constructs
NOT_HELD = ("optional at the ends", "optionals made inside and given out")  # onnxruntime cannot write such types
WEIGHTS = {name: floats(40, 40) for name in "dabce"}


def converted(model: onnx.ModelProto, path: Path) -> Path:
    """Write the model as onnxruntime does."""
    options = plain_options()
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return path


def five_products() -> onnx.ModelProto:
    body = "p = MatMul(x, d) q = MatMul(p, a) r = MatMul(q, b) s = MatMul(r, c) y = MatMul(s, e)"
    return models.text(f"g (float[n,40] x) => (float[n,40] y) {{ {body} }}", **WEIGHTS)


def places(path: Path) -> dict[str, int]:
    """Return where each weight's bytes lie."""
    content = path.read_bytes()
    return {name: content.index(array.tobytes()) for name, array in WEIGHTS.items()}


@pytest.mark.parametrize("last", [[], ["a", "d"]])
def test_weights_stand_in_order(tmp_path: Path, last: list[str]) -> None:
    path = converted(five_products(), tmp_path / "m.ort")
    feeds = {"x": floats(3, 40)}
    expected = open_session(path).run(None, feeds)
    found = lay_out(path, "dabce", last)
    order = sorted("dabce", key=lambda name: name in last)
    assert [*found[:-1]] == [places(path)[name] for name in order]
    assert not any(start % ALIGNMENT_BYTES for start in found[:-1])
    assert found[-1] == places(path)[order[4 - len(last)]] + WEIGHTS["a"].nbytes
    assert found[-1] <= path.stat().st_size
    assert [file.name for file in tmp_path.iterdir()] == ["m.ort"]
    for mapped in (True, False):
        np.testing.assert_array_equal(open_session(path, mapped=mapped).run(None, feeds), expected)
    again = path.read_bytes()
    assert lay_out(path, "dabce", last) == found
    assert path.read_bytes() == again


@pytest.mark.parametrize("name", [name for name in models.CONSTRUCTS if name not in NOT_HELD])
def test_every_construct_computes_the_same(tmp_path: Path, name: str) -> None:
    model, feeds = models.CONSTRUCTS[name]()
    path = converted(model, tmp_path / "m.ort")
    ready = models_feeds(path, feeds)
    expected = open_session(path).run(None, ready)
    lay_out(path, ())
    for left, right in zip(open_session(path).run(None, ready), expected, strict=True):
        np.testing.assert_equal(left, right)


def models_feeds(path: Path, feeds: models.Feeds | None) -> models.Feeds:
    return example_inputs(open_session(path).get_inputs(), feeds)


@pytest.mark.parametrize(("last", "order"), [([], "abc"), (["a"], "bca")])
def test_weights_of_bodies_move_as_well(tmp_path: Path, last: list[str], order: str) -> None:
    model = models.text(
        """g (bool go, float[n,40] x) => (float[n,40] y) {
            p = MatMul(x, a)
            y = If (go) <
                then_branch = t () => (float[n,40] u) { u = MatMul(p, b) },
                else_branch = e () => (float[n,40] v) <float[40,40] w> { v = MatMul(p, w) }
            >
        }""",
        a=WEIGHTS["a"],
        b=WEIGHTS["b"],
    )
    body = next(each.g for each in model.graph.node[1].attribute if each.name == "else_branch")
    del body.value_info[:]
    body.initializer.append(onnx.numpy_helper.from_array(WEIGHTS["c"], "w"))
    path = converted(model, tmp_path / "m.ort")
    found = lay_out(path, "ab", last)
    content = path.read_bytes()
    starts = [content.index(WEIGHTS[name].tobytes()) for name in order]
    assert starts == sorted(starts) == [*found[:-1]]
    assert found[-1] == starts[2 - len(last)] + WEIGHTS["a"].nbytes
    x = floats(2, 40)
    for go, second in ((True, "b"), (False, "c")):
        (y,) = open_session(path).run(None, {"go": np.array(go), "x": x})
        np.testing.assert_allclose(y, x @ WEIGHTS["a"] @ WEIGHTS[second], rtol=1e-4, atol=1e-4)


def without_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ortfile._TABLES, "Node", ortfile._TABLES["Node"][:-5])


def with_a_small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ortfile, "MAX_ORT_BYTES", 20_000)


def without_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ortfile._UNIONS, "TypeInfo", ("",))


@pytest.mark.parametrize("change", [without_a_field, with_a_small_limit, without_a_type])
def test_what_is_not_understood_or_too_large_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    path = converted(five_products(), tmp_path / "m.ort")
    before = path.read_bytes()
    change(monkeypatch)
    assert lay_out(path, "dabce") == ()
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = converted(five_products(), tmp_path / "m.ort")
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ortfile.shutil, "copymode", full)
    with pytest.raises(OSError, match=re.escape("No space left")):
        lay_out(path, "dabce")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.ort"]
