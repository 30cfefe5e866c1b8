"""The cache: entries are flushed before they have their name, and every kind is made anew where it is damaged."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import runtime_models

from splitload import ParallelLoader
from splitload.base.entries import RECORD, is_whole, making
from splitload.base.errors import CacheWarning, OutputError
from splitload.cli import main
from splitload.devices.host import HostDevice
from splitload.frontends import deep, zoo
from splitload.frontends.onnx import Source, load_graph
from splitload.measure.arms import Subject, make_arm
from splitload.training.head import with_new_head
from splitload.training.opened import load_opened


def emptied(data: bytes) -> bytes:
    """What a loss of power leaves under a name."""
    return b""


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def zeroed(data: bytes) -> bytes:
    return bytes(len(data))


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


DAMAGES = (emptied, cut, zeroed, flipped)


def files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def write(entry: Path) -> None:
    with making(entry, "it") as made:
        (made / "sub").mkdir()
        (made / "a").write_bytes(b"content")
        (made / "sub" / "b").write_bytes(b"more content")


def test_an_entry_is_whole_until_any_of_its_files_is_not(tmp_path: Path) -> None:
    entry = tmp_path / "kind" / "entry"
    assert not is_whole(entry)
    write(entry)
    assert is_whole(entry)
    assert {file.relative_to(entry).as_posix() for file in files_in(entry)} == {"a", "sub/b", RECORD}
    for file in files_in(entry):
        for damage in (*DAMAGES, None):
            if damage is None:
                file.unlink()
            else:
                file.write_bytes(damage(file.read_bytes()))
            with pytest.warns(CacheWarning, match=rf"in the cache '{entry}' is damaged \(.*\): it is made anew"):
                assert not is_whole(entry)
            assert not entry.exists()
            write(entry)
    assert is_whole(entry)


def test_an_entry_without_a_record_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry" / "model.onnx").write_bytes(b"of an older version, or half of one")
    with pytest.warns(CacheWarning, match=r"'record\.json' is missing"):
        assert not is_whole(tmp_path / "entry")


def test_everything_is_flushed_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    flush, rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        flush(descriptor)

    def named(source: Path, target: Path) -> None:
        order.append("named")
        rename(source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", named)
    write(tmp_path / "kind" / "entry")
    before = order[: order.index("named")]
    assert {"a", "b", "sub", RECORD} < set(before)
    assert before[-1].startswith(".entry.")
    assert order[order.index("named") + 1 :] == ["kind"]


def test_what_fails_leaves_nothing_and_who_comes_second_keeps_the_first(tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    with pytest.raises(ZeroDivisionError), making(entry, "it") as made:
        (made / "a").write_bytes(b"x")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with making(entry, "it") as made:
        write(entry)
        (made / "a").write_bytes(b"second")
    assert (entry / "a").read_bytes() == b"content"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"cannot write it to '.*file'"):
        write(tmp_path / "file" / "entry")


def host_profile(model: Path, cache: Path) -> Any:
    graph = load_graph(Source.open(model, "chain"), "native", cache)
    return HostDevice(cache, repeats=1).profile(graph).model_sha256


def arm(name: str) -> Callable[[Path, Path], Any]:
    def made(model: Path, cache: Path) -> Any:
        source = Source.open(model, "chain")
        return make_arm(name, Subject(str(model), source, load_graph(source, "native", cache), None, {}, cache)).path

    return made


KINDS: dict[str, tuple[str, Callable[[Path, Path], Any]]] = {
    "native graph": ("graphs", lambda model, cache: load_graph(Source.open(model, "chain"), "native", cache).nodes),
    "portable graph": ("graphs", lambda model, cache: load_graph(Source.open(model, "chain"), "portable", cache).nodes),
    "divided graph": (
        "graphs",
        lambda model, cache: load_opened(Source.open(model, "chain"), "native", cache, "layer5").graph.nodes,
    ),
    "new head": ("heads", lambda model, cache: with_new_head(Source.open(model, "chain"), 5, cache).sha256),
    "profile": ("profiles", host_profile),
    "zoo": ("zoo", lambda _, cache: zoo.path("mobilenet_v1", cache).read_bytes()),
    "deep": ("deep", lambda _, cache: deep.path(8, cache).read_bytes()),
    "arm tuned": ("bench", arm("tuned")),
    "arm ort-format": ("bench", arm("ort-format")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_entry_is_made_anew_where_it_is_damaged(kind: str, chain_model: Path, tmp_path: Path) -> None:
    room, make = KINDS[kind]
    expected = make(chain_model, tmp_path)
    files = files_in(tmp_path / room)
    assert files
    whole = {file: file.stat().st_mtime_ns for file in files}
    assert make(chain_model, tmp_path) == expected
    assert {file: file.stat().st_mtime_ns for file in files} == whole, "what is right is used again"
    for damage in (emptied, flipped)[kind == "profile" :]:  # which takes seconds to make
        for file in files:
            file.write_bytes(damage(file.read_bytes()))
        with pytest.warns(CacheWarning, match=f"in the cache '{tmp_path / room}"):
            assert make(chain_model, tmp_path) == expected
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert make(chain_model, tmp_path) == expected


def test_train_makes_a_right_bundle_of_a_damaged_cache_and_says_so(
    chain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    words = ["train", str(chain_model), "--device", "s20", "-o", str(tmp_path / "b.splitload"), "--json"]
    assert main(words) == 0
    expected = ort.InferenceSession(chain_model).run(None, runtime_models.feeds())
    for damage in DAMAGES:
        weights = [file for file in files_in(tmp_path / "cache" / "graphs") if file.name == "model.bin"]
        assert weights
        for file in weights:
            file.write_bytes(damage(file.read_bytes()))
        capsys.readouterr()
        assert main(words) == 0
        out, err = capsys.readouterr()
        json.loads(out)
        notes = [line for line in err.splitlines() if line.startswith("in the cache '")]
        assert len(notes) == len(weights)
        assert "'model.bin' was changed): it is made anew" in notes[0]
        with ParallelLoader(tmp_path / "b.splitload", verify="hashes") as model:
            for got, wanted in zip(model.run(None, runtime_models.feeds()), expected, strict=True):
                np.testing.assert_allclose(got, wanted, atol=1e-5)
