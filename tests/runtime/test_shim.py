"""`splitload.InferenceSession` loads the bundle of a model where there is one, and is a plain session otherwise."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import runtime_models
from runtime_models import feeds

import splitload
from splitload.base.errors import BundleError, UsageError
from splitload.bundle import beside
from splitload.bundle.beside import sha256_of_model

CPU = ["CPUExecutionProvider"]


@pytest.fixture
def place(chain_model: Path, chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `model.onnx` and its bundle beside it."""
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    shutil.copy(chain_model, tmp_path / "model.onnx")
    shutil.copytree(chain_bundle, tmp_path / "model.splitload", copy_function=shutil.copyfile)
    return tmp_path


def records(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "splitload"]


@pytest.mark.parametrize("kind", [str, Path])
def test_the_bundle_beside_a_model_is_loaded(place: Path, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "splitload")
    path = kind(place / "model.onnx")
    session = splitload.InferenceSession(path, providers=CPU)
    stock = ort.InferenceSession(path, providers=CPU)
    assert session.bundle == place / "model.splitload"
    for got, expected in zip(session.run(None, feeds()), stock.run(None, feeds()), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert records(caplog) == [("INFO", f"bundle for {path}: {session.reason}")]
    assert session.wait("upgraded", 60)
    assert session.timeline.tasks
    session.close()


def test_it_is_one_of_onnxruntimes_sessions(place: Path) -> None:
    session = splitload.InferenceSession(place / "model.onnx")
    assert isinstance(session, ort.InferenceSession)
    assert isinstance(session, splitload.InferenceSession)
    with pytest.raises(AttributeError, match=r"splitload\.IOBinding"):
        ort.IOBinding(session)
    binding = splitload.IOBinding(session)
    for name, value in feeds().items():
        binding.bind_cpu_input(name, value)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], session.run(["y"], feeds())[0])


@pytest.mark.parametrize("name", ["_inputs_meta", "_outputs_meta", "_providers", "_model_path", "_model_bytes"])
def test_what_clients_read_of_its_inside_is_there(place: Path, name: str) -> None:
    path = str(place / "model.onnx")
    shown = [getattr(make(path, providers=CPU), name) for make in (splitload.InferenceSession, ort.InferenceSession)]
    ours, theirs = ([str(each) for each in value] if isinstance(value, list) else value for value in shown)
    assert ours == theirs


def test_a_model_without_a_bundle_is_a_plain_session(chain_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "splitload")
    lone = chain_model.with_name("lone.onnx")
    shutil.copy(chain_model, lone)
    session = splitload.InferenceSession(lone, providers=CPU)
    assert (session.bundle, session.loader) == (None, None)
    assert len(session.run(None, feeds())) == 2
    assert [str(each) for each in session.get_inputs()] == [
        str(each) for each in ort.InferenceSession(lone).get_inputs()
    ]
    assert records(caplog) == [("INFO", f"plain session for {lone}: no bundle lies beside '{lone}'")]
    assert isinstance(splitload.IOBinding(session), ort.IOBinding)
    with pytest.raises(AttributeError, match="has no attribute 'timeline'"):
        _ = session.timeline


def test_the_bundle_of_another_model_is_not_taken_and_that_is_told(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = onnx.load(place / "model.onnx")
    (weight,) = (each for each in model.graph.initializer if each.name == "w2")
    weight.raw_data = weight.raw_data[::-1]  # as long as before
    onnx.save(model, place / "model.onnx")
    session = splitload.InferenceSession(place / "model.onnx", providers=CPU)
    assert session.bundle is None
    ((level, message),) = records(caplog)
    assert level == "WARNING"
    assert "is of another model than this one, make it again" in message


@pytest.mark.parametrize(
    "damage",
    [lambda manifest: b"{", lambda manifest: manifest.replace(b'"format"', b'"farmat"')],
    ids=["cut", "another format"],
)
def test_a_damaged_bundle_is_not_taken_and_that_is_told(
    place: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = place / "model.splitload" / "manifest.json"
    manifest.write_bytes(damage(manifest.read_bytes()))
    session = splitload.InferenceSession(place / "model.onnx", providers=CPU)
    assert len(session.run(None, feeds())) == 2
    ((level, message),) = records(caplog)
    assert (level, message.startswith("plain session")) == ("WARNING", True)


def test_files_that_are_missing_are_told_of(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    next((place / "model.splitload").glob("portable-00*")).unlink()
    session = splitload.InferenceSession(place / "model.onnx", providers=CPU)
    assert len(session.run(None, feeds())) == 2
    assert "is not taken" in session.reason
    assert records(caplog)[0][0] == "WARNING"


def test_what_a_bundle_cannot_do_a_plain_session_does(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    options = ort.SessionOptions()
    options.enable_profiling = True
    session = splitload.InferenceSession("model.onnx", options, providers=CPU)
    session.run(None, feeds())
    assert Path(session.end_profiling()).is_file()
    assert "enable_profiling" in records(caplog)[0][1]


def test_the_folder_of_a_bundle_is_loaded_without_hashing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "sha256_of_model", None)
    session = splitload.InferenceSession(place / "model.splitload")
    assert session.bundle == place / "model.splitload"
    options = ort.SessionOptions()
    options.enable_profiling = True
    with pytest.raises(UsageError, match="enable_profiling"):  # there is no model to open instead
        splitload.InferenceSession(place / "model.splitload", options)
    (place / "model.splitload" / "manifest.json").write_text("{}")
    with pytest.raises(BundleError):
        splitload.InferenceSession(place / "model.splitload")


def test_bundles_for_bytes_and_for_models_elsewhere_are_named(place: Path, chain_model: Path) -> None:
    class Session(splitload.InferenceSession):
        bundles = (place / "nowhere.splitload", place / "model.splitload")

    data = chain_model.read_bytes()
    for model in (data, chain_model.parent / "chain.onnx"):
        assert Session(model, providers=CPU).bundle is not None
    assert Session(data, providers=CPU)._model_bytes == data
    assert Session(data + b"\x72\x00", providers=CPU).bundle is None  # an empty field more
    assert splitload.InferenceSession(data, providers=CPU).bundle is None


@pytest.mark.parametrize(("kind", "what"), [(None, "not there"), ("file", "no folder")])
def test_a_folder_that_is_named_and_is_none_is_told_of(
    chain_model: Path, tmp_path: Path, kind: str | None, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = tmp_path / "wrong.splitload"
    if kind == "file":
        wrong.write_bytes(b"")

    class Session(splitload.InferenceSession):
        bundles = (str(wrong),)

    assert Session(chain_model.read_bytes(), providers=CPU).bundle is None
    assert records(caplog) == [("WARNING", f"plain session for bytes: '{wrong}', named in `bundles`, is {what}")]


@pytest.mark.parametrize("name", ["nope.splitload", "folder"])
def test_a_path_that_can_only_be_a_bundle_is_told_of_as_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(BundleError, match=r"is not a bundle: (there is no such folder|it has no manifest\.json)"):
        splitload.InferenceSession(tmp_path / name)


def test_a_model_that_is_not_there_is_no_raw_error(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    (place / "model.onnx").unlink()
    with pytest.raises(Exception, match="NO_SUCHFILE"):
        splitload.InferenceSession(place / "model.onnx", enable_fallback=0)
    assert records(caplog)[0][1].endswith(f": cannot read '{place / 'model.onnx'}': No such file or directory")


def test_it_raises_what_a_session_raises(tmp_path: Path) -> None:
    for make in (splitload.InferenceSession, ort.InferenceSession):
        with pytest.raises(TypeError, match="Unable to load from type"):
            make(3)
        with pytest.raises(Exception, match="nowhere") as caught:
            make(tmp_path / "nowhere.onnx", enable_fallback=0)
        assert type(caught.value).__name__ == "NoSuchFile"


def test_subclasses_of_clients_work(place: Path) -> None:
    class Picklable(splitload.InferenceSession):  # insightface has one
        def __init__(self, path: Any, **kwargs: Any) -> None:
            super().__init__(path, **kwargs)
            self.path = path

        def __getstate__(self) -> dict[str, Any]:
            return {"path": self.path, "providers": self.get_providers()}

        def __setstate__(self, state: dict[str, Any]) -> None:
            self.__init__(state["path"], providers=state["providers"])  # type: ignore[misc]

    session = copy.copy(Picklable(place / "model.onnx"))
    assert session.bundle is not None
    assert len(session.run(None, feeds())) == 2


@pytest.mark.parametrize("name", [name for name in dir(ort.InferenceSession) if not name.startswith("_")])
def test_every_method_asks_the_loader(place: Path, name: str) -> None:
    session = splitload.InferenceSession(place / "model.onnx")
    asked = []
    session.loader = type("Loader", (), {name: lambda _, *given, **named: asked.append((given, named))})()
    getattr(session, name)(1, two=2)
    assert asked == [((1,), {"two": 2})]


def test_a_model_with_external_data_is_known_by_all_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.onnx"
    onnx.save(runtime_models.chain(), path, save_as_external_data=True, location="model.bin", size_threshold=0)
    words = ["train", str(path), "--device", "s20", "--max-stages", "2", "-o", str(path.with_suffix(".splitload"))]
    done = subprocess.run([sys.executable, "-m", "splitload", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert splitload.InferenceSession(path).bundle is not None
    data = bytearray((tmp_path / "model.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "model.bin").write_bytes(data)
    assert splitload.InferenceSession(path).bundle is None


def age(*files: Path) -> None:
    """Let files look as if they had been there for a while."""
    for file in files:
        os.utime(file, ns=(10**18, 10**18))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each model that is hashed; a file's change is long ago, whatever its ctime says."""
    import hashlib

    count: list[int] = []
    real = hashlib.sha256

    def counted(*given: Any) -> Any:
        if not given:  # what is remembered has a hash too, of one piece
            count.append(1)
        return real(*given)

    monkeypatch.setattr(hashlib, "sha256", counted)
    monkeypatch.setattr(beside, "SETTLED_S", -60.0)
    return count


def test_a_hash_is_remembered_until_a_file_changes(tmp_path: Path, hashed: list[int]) -> None:
    files, cache = [tmp_path / "model.onnx", tmp_path / "model.bin"], tmp_path / "cache"
    for file in files:
        file.write_bytes(b"abc")
    first = sha256_of_model(files, cache)
    assert sha256_of_model(files, cache) == first
    assert len(hashed) == 1
    files[1].write_bytes(b"abd")
    assert sha256_of_model(files, cache) != first
    assert len(hashed) == 2
    sha256_of_model(files, None)
    assert len(hashed) == 3


def test_a_file_that_has_just_changed_is_hashed_again(tmp_path: Path) -> None:
    file, cache = tmp_path / "model.onnx", tmp_path / "cache"
    file.write_bytes(b"abc")
    sha256_of_model([file], cache)
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"files": 1}', b"null", b"\xff", b"[" * 100_000])
def test_a_damaged_memory_is_none(tmp_path: Path, hashed: list[int], content: bytes) -> None:
    file, cache = tmp_path / "model.onnx", tmp_path / "cache"
    file.write_bytes(b"abc")
    sha256 = sha256_of_model([file], cache)
    (memory,) = (cache / "models").iterdir()
    memory.write_bytes(content)
    assert sha256_of_model([file], cache) == sha256
    assert json.loads(memory.read_bytes())["model_sha256"] == sha256


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, hashed: list[int]) -> None:
    file, cache = tmp_path / "model.onnx", tmp_path / "cache"
    file.write_bytes(b"abc")
    cache.write_text("in the way")
    assert sha256_of_model([file], cache) == sha256_of_model([file], None)


IN_PLACE = """
import sys
import onnxruntime
import splitload

stock = onnxruntime.InferenceSession
made = []


class Session(splitload.InferenceSession):
    def __init__(self, *given, **named):
        made.append(given[0])
        super().__init__(*given, **named)


onnxruntime.InferenceSession = Session
sys.path.insert(0, sys.argv[1])
import runtime_models
from splitload.frontends.onnx import Source, load_graph

session = onnxruntime.InferenceSession(sys.argv[2])
session.run(None, runtime_models.feeds())
assert session.wait("upgraded", 60)
assert made == [sys.argv[2]], made  # the loader opens its stages by itself
"""


def test_the_loader_does_not_call_what_stands_in_for_the_runtimes_class(place: Path) -> None:
    words = [str(Path(runtime_models.__file__).parent), str(place / "model.onnx")]
    done = subprocess.run([sys.executable, "-c", IN_PLACE, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
