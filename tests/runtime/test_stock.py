"""No part of splitload opens sessions by the name that a stand-in may have taken."""

from __future__ import annotations

import ast
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import runtime_models

import splitload
from splitload import ParallelLoader
from splitload.base.errors import OutputError
from splitload.bundle.read import read_manifest
from splitload.graphs.rewrite import save_with_data
from splitload.runtime.stock import path_option, runtime_path, session_beside, session_class, stock_session

PACKAGE = Path(splitload.__file__).parent
OF_THEIR_OWN = ("measure/__main__.py", "studies/client_calls.py", "studies/*_child.py")  # processes
FILES = sorted(
    {file.resolve() for folder in (PACKAGE, PACKAGE.parent / "deploy") for file in folder.rglob("*.py")}
    - {file.resolve() for pattern in OF_THEIR_OWN for file in PACKAGE.glob(pattern)}
)


def test_sessions_are_made_by_the_class_that_the_runtime_defines() -> None:
    assert len(FILES) > 100
    places = [
        f"{file.name}:{node.lineno}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "InferenceSession"
    ]
    assert not places, "make them by splitload.runtime.stock"


def test_a_stand_in_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = session_class()
    assert real is ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", None)
    assert session_class() is real


def test_paths_are_text_where_they_can_be(tmp_path: Path) -> None:
    assert runtime_path(tmp_path / "mödel.onnx") == path_option(tmp_path / "mödel.onnx") == f"{tmp_path}/mödel.onnx"
    assert path_option(Path(os.fsdecode(b"/m\xf6del.onnx"))) == b"/m\xf6del.onnx"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere names of files are Unicode in any case")
def test_paths_are_what_the_system_calls_them_in_a_locale_without_utf8(
    chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.onnx")
    shutil.copyfile(chain_bundle.with_name("chain.onnx"), file)
    monkeypatch.setattr(os, "fsencode", lambda path: os.fspath(path).encode("latin-1"))  # as Python does there
    text = tmp_path / "café.onnx"
    assert path_option(text) == bytes(tmp_path) + b"/caf\xe9.onnx"
    assert runtime_path(tmp_path / "cafe.onnx") == f"{tmp_path}/cafe.onnx"
    assert len(stock_session(text, ort.SessionOptions()).get_outputs()) == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere names of files are Unicode in any case")
def test_a_bundle_whose_path_is_no_text_is_loaded_and_made_native(
    chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / os.fsdecode(b"h\xe4user")
    bundle = Path(shutil.copytree(chain_bundle, folder / "b.splitload", copy_function=shutil.copyfile))
    with ParallelLoader(bundle, specialize="background") as model:
        assert len(model.run(None, runtime_models.feeds())) == 2
        assert model.wait("specialized", 60)
    assert read_manifest(bundle, "hashes").variants[0].kind == "native"
    with pytest.raises(OutputError, match=r"onnx writes no weights to .*; rename it"):
        save_with_data(onnx.load_model(chain_bundle.with_name("chain.onnx")), folder / "m.onnx")


@pytest.mark.parametrize("name", ["models", pytest.param(os.fsdecode(b"h\xe4user"), marks=pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere names of files are Unicode in any case"
))])  # fmt: skip
def test_a_session_finds_its_weights_and_writes_nothing(
    chain_bundle: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever is killed while it is made leaves nothing."""
    model = onnx.load_model(chain_bundle.with_name("chain.onnx"))
    folder = tmp_path / name
    save_with_data(model, tmp_path / "m.onnx")
    folder.mkdir()
    files = {path.rename(folder / path.name) for path in tmp_path.iterdir() if path != folder}
    (graph,) = (path for path in files if path.suffix == ".onnx")
    assert len(files) > 1
    expected = stock_session(chain_bundle.with_name("chain.onnx"), ort.SessionOptions()).run(
        None, runtime_models.feeds()
    )
    options = ort.SessionOptions()
    for _ in range(2):
        found = session_beside(folder, graph.read_bytes(), options).run(None, runtime_models.feeds())
        for got, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
    assert set(folder.iterdir()) == files
    assert "already exists" not in "".join(capfd.readouterr())
