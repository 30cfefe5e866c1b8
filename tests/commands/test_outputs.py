"""`splitload run -o`: a file of its own for each output, whole, or none at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from splitload.base.errors import OutputError, UsageError
from splitload.bundle.manifest import TensorSpec
from splitload.cli import main
from splitload.commands.outputs import INDEX, plan_outputs, save_outputs

Run = Callable[..., Any]


def spec(name: str, kind: str = "tensor(float)") -> TensorSpec:
    return TensorSpec(name, kind, None)


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["y", "logits.0-a_b"], ["y.npy", "logits.0-a_b.npy"]),
        (["输出", "结果", "a/b", "a:b"], ["__~1.npy", "__~2.npy", "a_b~3.npy", "a_b~4.npy"]),
        (["a_b", "a/b"], ["a_b.npy", "a_b~2.npy"]),
        (["Y", "y"], ["Y.npy", "y~2.npy"]),  # one file where case does not count
        (["", ".hidden", "..", "../../etc/x"], ["~1.npy", "hidden~2.npy", "~3.npy", "_.._etc_x~4.npy"]),
        (["x" * 300, "x" * 301], ["x" * 100 + "~1.npy", "x" * 100 + "~2.npy"]),
    ],
)
def test_names_of_files(tmp_path: Path, names: list[str], files: list[str]) -> None:
    planned = plan_outputs(tmp_path, [spec(name) for name in names])
    assert list(planned.items()) == list(zip(names, files, strict=True))
    assert len({file.lower() for file in planned.values()}) == len(names)


@pytest.mark.parametrize("kind", ["tensor(bfloat16)", "sparse_tensor(float)", "seq(tensor(bfloat16))", "opaque"])
def test_types_that_no_file_holds_are_refused_beforehand(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UsageError, match=r"output 'y' is a .* leave -o out"):
        plan_outputs(tmp_path, [spec("x"), spec("y", kind)])


def test_places_where_nothing_can_be_saved(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "out" / "y.npy").mkdir(parents=True)
    for folder, reason in (("file", "is not a folder"), ("no/out", "there is no folder"), ("out", "is a folder")):
        with pytest.raises(OutputError, match=reason):
            plan_outputs(tmp_path / folder, [spec("y")])


def test_sequences_and_maps(tmp_path: Path) -> None:
    specs = [
        spec("s", "seq(tensor(float))"),
        spec("m", "map(string,tensor(float))"),
        spec("p", "seq(map(int64,tensor(float)))"),
        spec("t", "tensor(string)"),
        spec("none", "optional(tensor(float))"),
    ]
    files = plan_outputs(tmp_path / "out", specs)
    values: dict[str, Any] = {
        "s": [np.zeros(2, "f"), np.ones((1, 3), "f")],
        "m": {"cat": 0.25, "dog": 0.75},
        "p": [{0: 0.5, 7: 0.5}, {0: 1.0, 7: 0.0}],
        "t": np.array([["één", ""]], dtype=object),
        "none": None,
    }
    save_outputs(tmp_path / "out", files, values)
    sequence, mapped, maps = (np.load(tmp_path / "out" / files[name]) for name in "smp")
    assert [sequence[name].shape for name in sequence.files] == [(2,), (1, 3)]
    assert dict(zip(mapped["keys"], mapped["values"], strict=True)) == values["m"]
    assert maps["1.keys"].tolist() == [0, 7]
    assert maps["1.values"].tolist() == [1.0, 0.0]
    assert np.load(tmp_path / "out" / "t.npy").tolist() == [["één", ""]]
    assert json.loads((tmp_path / "out" / INDEX).read_text("utf-8")) == {
        "s": "s.npz", "m": "m.npz", "p": "p.npz", "t": "t.npy"
    }  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="needs a place where nobody may write")
def test_a_place_that_cannot_be_written_is_told_of_with_what_to_do() -> None:
    with pytest.raises(OutputError) as caught:
        save_outputs(Path("/proc/nowhere"), {"y": "y.npy"}, {"y": np.zeros(1)})
    assert str(caught.value).startswith("cannot save the outputs in '/proc/nowhere': ")
    assert str(caught.value).endswith("; give another place with -o")
    assert "Errno" not in str(caught.value)


def test_all_or_none(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    files = plan_outputs(folder, [spec("x"), spec("t", "tensor(string)")])
    values = {"x": np.zeros(2, "f"), "t": np.array(["a\0"], dtype=object)}
    with pytest.raises(OutputError, match="NUL"):
        save_outputs(folder, files, values)
    assert not folder.exists()
    folder.mkdir()
    (folder / "x.npy").write_text("of before")
    with pytest.raises(OutputError, match="NUL"):
        save_outputs(folder, files, values)
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("x.npy", "of before")]


@pytest.fixture
def text_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose outputs are text and numbers, with names that are no file's."""
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    nodes = [
        helper.make_node("Cast", ["x"], ["a/b"], to=TensorProto.STRING),
        helper.make_node("Exp", ["x"], ["a:b"]),
        helper.make_node("SequenceConstruct", ["x", "a:b"], ["both"]),
    ]
    both = helper.make_tensor_sequence_value_info("both", TensorProto.FLOAT, None)
    outputs = [
        helper.make_tensor_value_info("a/b", TensorProto.STRING, [2]),
        helper.make_tensor_value_info("a:b", TensorProto.FLOAT, [2]),
        both,
    ]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])], outputs)
    model = tmp_path / "t.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), model)
    bundle = tmp_path / "t.splitload"
    assert main(["train", str(model), "--device", "s20", "-o", str(bundle)]) == 0
    return bundle


def test_run_saves_every_output(text_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    np.save(tmp_path / "x.npy", np.array([1, 2], "f"))
    words = ["run", str(text_bundle), "--input", f"x={tmp_path / 'x.npy'}", "-o", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["saved"] == {"a/b": "a_b~1.npy", "a:b": "a_b~2.npy", "both": "both.npz"}
    assert json.loads((tmp_path / "out" / INDEX).read_text()) == found["saved"]
    assert np.load(tmp_path / "out" / "a_b~1.npy").tolist() == ["1", "2"]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "a_b~2.npy"), np.exp([1, 2]), rtol=1e-6)
    assert np.load(tmp_path / "out" / "both.npz")["0"].tolist() == [1, 2]
    assert main(["run", str(text_bundle), "-o", ""]) == 2
