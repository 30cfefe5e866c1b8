"""Bad models, bad external data and full disks: one clear line each, and nothing half-written."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest

from splitload.base.errors import ModelError, OutputError, UsageError
from splitload.frontends import onnx as frontend
from splitload.frontends import open_source
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs import optimize as optimizing
from splitload.graphs.stages import StageWriter


def message(caught: pytest.ExceptionInfo[Exception]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


@contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    """No file can grow beyond this, which fails much as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no graph with outputs"),
        (b"hello, this is no model\n" * 50, "not an ONNX model"),
        (b"\x08\x07", "holds no graph with outputs"),
        (models.chain(9).SerializeToString()[:-40], "truncated or not an ONNX model"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=expected) as caught:
        Source.open(path, "bad")
    assert str(path) in message(caught)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model file '.*none\.onnx'"):
        open_source(str(tmp_path / "none.onnx"), tmp_path)
    with pytest.raises(ModelError, match="is a folder"):
        open_source(str(tmp_path), tmp_path)


def test_files_over_2_gb_are_told_to_use_external_data(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate((2 << 30) + 1)  # holes only
    with pytest.raises(ModelError, match="over 2 GB; save its weights as external data"):
        Source.open(path, "large")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"opset": 99}, r"Opset 99"),
        ({"ir": 99}, r"Unsupported model IR version: 99"),
    ],
)
def test_versions_that_the_runtime_cannot_load(tmp_path: Path, changes: dict[str, int], expected: str) -> None:
    model = models.text("g (float[3] x) => (float[3] y) { y = Tanh(x) }", **changes)
    source = Source.open(models.save(model, tmp_path), "new")
    with pytest.raises(ModelError, match=expected) as caught:
        load_graph(source, "native", tmp_path / "cache")
    assert re.match(r"onnxruntime [\d.]+ cannot load '", message(caught))
    assert "onnxruntime_src" not in message(caught)
    assert not list((tmp_path / "cache" / "graphs").iterdir())


def test_unknown_operators_and_same_node_names_are_the_runtimes_to_refuse(tmp_path: Path) -> None:
    source = Source.open(models.save(models.text("g (float[3] x) => (float[3] y) { y = Tahn(x) }"), tmp_path), "typo")
    with pytest.raises(ModelError, match="No Op registered for Tahn"):
        load_graph(source, "portable", tmp_path)
    model = models.several_chain()
    for node in model.graph.node:
        node.name = "same"
    with pytest.raises(ModelError, match="two nodes with same node name"):
        load_graph(Source.open(models.save(model, tmp_path), "same"), "portable", tmp_path)


@pytest.mark.parametrize(
    "text", ["g () => (float y) { y = Constant <value_float = 1.0> () }", "g (float x) => (float x) {}"]
)
def test_models_that_compute_nothing(tmp_path: Path, text: str) -> None:
    source = Source.open(models.save(models.text(text), tmp_path), "still")
    with pytest.raises(ModelError, match="computes nothing from its inputs"):
        load_graph(source, "portable", tmp_path)


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    model = models.text("g (float[3] x) => (float[3] y) { y = Tanh(x) }")
    source = Source.open(models.save(model, tmp_path), "model")
    with pytest.raises(ModelError, match=r"does not run on the given inputs: .*Got: 4 Expected: 3") as caught:
        load_graph(source, "portable", tmp_path, feeds={"x": np.ones(4, np.float32)})
    message(caught)
    with pytest.raises(UsageError, match=r"no input \['z'\]; it has \['x'\]"):
        load_graph(source, "portable", tmp_path, feeds={"z": np.ones(3, np.float32)})


def external(folder: Path, **entries: str) -> Path:
    """A model whose weight of 64 bytes is said to lie where `entries` tell."""
    model = models.text("g (float[1,4] x) => (float[1,4] y) { y = MatMul(x, w) }")
    weight = model.graph.initializer.add(name="w", data_type=1, dims=[4, 4], data_location=1)
    for key, value in ({"location": "w.bin", "length": "64"} | entries).items():
        weight.external_data.add(key=key, value=value)
    (folder / "w.bin").write_bytes(models.floats(4, 4).tobytes())
    return models.save(model, folder)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"location": "none.bin"}, "'none.bin', which is missing beside it"),
        ({"location": ""}, "outside its own folder; refused"),
        ({"location": "../w.bin"}, "outside its own folder; refused"),
        ({"location": "/etc/passwd"}, "outside its own folder; refused"),
        ({"location": "link.bin"}, "outside its own folder; refused"),
        ({"location": "w\0.bin"}, "outside its own folder; refused"),
        ({"offset": "8"}, "truncated: 64 bytes, 'model.onnx' needs 72"),
        ({"length": "many"}, "'many' for an offset or length"),
        ({"offset": "-8"}, "'-8' for an offset or length"),
    ],
)
def test_external_data_that_is_not_there(tmp_path: Path, entries: dict[str, str], expected: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(64))
    (tmp_path / "inner" / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(ModelError, match=expected) as caught:
        Source.open(external(tmp_path / "inner", **entries), "model")
    message(caught)


def test_external_data_of_bodies_and_functions_is_checked_too(tmp_path: Path) -> None:
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[4], data_location=1)
    tensor.external_data.add(key="location", value="none.bin")
    constant = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    in_function = models.several()
    in_function.functions.add(name="f", domain="local").node.append(constant)
    in_body = models.several()
    body = onnx.GraphProto(node=[constant])
    in_body.graph.node[0].attribute.append(onnx.helper.make_attribute("then_branch", body))
    for model in (in_function, in_body):
        with pytest.raises(ModelError, match=r"none\.bin"):
            Source.open(models.save(model, tmp_path), "model")


def test_external_data_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontend, "external_files", lambda *_: [tmp_path / "gone.bin"])
    with pytest.raises(ModelError, match=r"cannot read '.*gone\.bin': No such file"):
        Source.open(external(tmp_path), "model")


def heavy() -> onnx.ModelProto:
    return models.text(
        "g (float[1,100] x) => (float[1,100] y) {\n a = MatMul(x, w)\n b = Tanh(a)\n y = MatMul(b, w)\n }",
        w=models.floats(100, 100),
    )


@pytest.mark.parametrize("build", [heavy, lambda: models.chain(1000, weights=False)])
def test_files_that_cannot_grow_leave_nothing_in_the_cache(
    tmp_path: Path, build: Callable[[], onnx.ModelProto]
) -> None:
    source = Source.open(models.save(build(), tmp_path), "heavy")
    with files_limited_to(20_000), pytest.raises(OutputError) as caught:
        load_graph(source, "portable", tmp_path / "cache")
    message(caught)
    assert not list((tmp_path / "cache" / "graphs").iterdir())


def test_a_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source.open(models.save(heavy(), tmp_path), "heavy")

    def full(*_: Any) -> None:
        raise RuntimeError("write failed: No space left on device")

    monkeypatch.setattr(optimizing, "optimize", full)
    with pytest.raises(OutputError, match="no space left for the optimised model"):
        load_graph(source, "native", tmp_path / "cache")

    def full_too(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(optimizing, "optimize", full_too)
    with pytest.raises(OutputError, match=r"cannot write the optimised model to '.*graphs': No space left"):
        load_graph(source, "native", tmp_path / "cache")
    assert not list((tmp_path / "cache" / "graphs").iterdir())


def test_a_cache_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    source = Source.open(models.save(heavy(), tmp_path), "heavy")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match="cannot write the optimised model"):
        load_graph(source, "native", tmp_path / "cache")


@pytest.mark.root
def test_a_really_full_disk(tmp_path: Path) -> None:
    source = Source.open(models.save(heavy(), tmp_path), "heavy")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], check=True)
    try:
        with pytest.raises(OutputError, match="no space left"):
            load_graph(source, "native", disk)
        assert not list((disk / "graphs").iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_stage_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    graph = load_graph(Source.open(models.save(heavy(), tmp_path), "heavy"), "portable", tmp_path / "cache")
    with pytest.raises(OutputError, match="cannot write stage 's' to"):
        StageWriter(graph).write(0, 1, tmp_path / "none", "s")


def test_weights_cut_short_in_the_cache_are_noticed(tmp_path: Path) -> None:
    graph = load_graph(Source.open(models.save(heavy(), tmp_path), "heavy"), "portable", tmp_path / "cache")
    os.truncate(graph.path.with_name("model.bin"), 1000)
    with pytest.raises(OutputError, match="end too soon; remove it from the cache folder"):
        StageWriter(graph).write(0, 1, tmp_path, "s")
