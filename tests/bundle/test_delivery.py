"""`splitload install`: a bundle takes the place of one that is in use, whole and checked, or not at all."""

from __future__ import annotations

import argparse
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import runtime_models

import splitload
from splitload import ParallelLoader
from splitload.base.errors import BundleError, OutputError, UsageError
from splitload.bundle.delivery import install
from splitload.bundle.manifest import MANIFEST
from splitload.bundle.read import read_manifest
from splitload.bundle.verification import verify
from splitload.cli import main
from splitload.studies import clients
from splitload.studies.study import record_file


def content(bundle: Path) -> dict[str, bytes]:
    return {str(file.relative_to(bundle)): file.read_bytes() for file in sorted(bundle.rglob("*")) if file.is_file()}


def test_install_copies_what_belongs_to_the_bundle(
    chain_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "here.splitload"
    assert main(["install", str(chain_bundle), str(target), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == len(list(chain_bundle.iterdir()))
    assert told["source"] == str(chain_bundle)
    assert content(target) == content(chain_bundle)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert splitload.install(chain_bundle, target) == verify(target)


def test_a_bundle_in_use_is_replaced_by_the_same_and_by_another(
    chain_bundle: Path, native_bundle: Path, tmp_path: Path
) -> None:
    target = tmp_path / "here.splitload"
    install(chain_bundle, target)
    feeds = runtime_models.feeds()
    with ParallelLoader(target) as model:
        expected = model.run(None, feeds)
        for source in (chain_bundle, native_bundle, chain_bundle):
            install(source, target)
            for got, wanted in zip(model.run(None, feeds), expected, strict=True):
                np.testing.assert_array_equal(got, wanted)
            with ParallelLoader(target) as other:
                for got, wanted in zip(other.run(None, feeds), expected, strict=True):
                    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_readers_see_the_old_bundle_or_the_new_one(chain_bundle: Path, native_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "here.splitload"
    install(chain_bundle, target)
    known = {len(read_manifest(each).variants) for each in (chain_bundle, native_bundle)}
    seen, over = set(), threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.add(len(read_manifest(target, "none").variants))

    reader = threading.Thread(target=read)
    reader.start()
    for source in (native_bundle, chain_bundle) * 5:
        install(source, target)
    over.set()
    reader.join()
    assert seen <= known
    assert seen


def test_a_damaged_source_changes_nothing(own_bundle: Path, chain_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "here.splitload"
    install(chain_bundle, target)
    before = content(target)
    for file in sorted(own_bundle.iterdir()):
        whole = file.read_bytes()
        file.write_bytes(whole[:-3] + b"xyz")
        with pytest.raises(BundleError) as raised:
            install(own_bundle, target)
        assert str(own_bundle) in str(raised.value)
        assert ".making" not in str(raised.value)
        file.unlink()
        with pytest.raises(BundleError, match=r"is missing|it has no manifest"):
            install(own_bundle, target)
        file.write_bytes(whole)
    assert content(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [target.name, own_bundle.name]


def test_links_become_files_and_strangers_stay_behind(own_bundle: Path, tmp_path: Path) -> None:
    expected = content(own_bundle)
    for number, file in enumerate(sorted(own_bundle.iterdir())):
        file.rename(tmp_path / f"blob{number}")
        file.symlink_to(tmp_path / f"blob{number}")
    (own_bundle / "stranger").write_bytes(b"x")
    found = install(own_bundle, tmp_path / "here.splitload")
    assert found.links == 0
    assert content(tmp_path / "here.splitload") == expected


def test_what_is_no_bundle_is_left_alone(chain_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="are the same bundle"):
        install(chain_bundle, chain_bundle)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="exists and is not a bundle"):
        install(chain_bundle, tmp_path / "folder")
    with pytest.raises(BundleError, match="is not a bundle"):
        install(tmp_path / "folder", tmp_path / "new.splitload")
    (tmp_path / "folder" / MANIFEST).write_text('{"format": "splitload-torch"}')
    with pytest.raises(OutputError, match="exists and is not a bundle"):
        install(chain_bundle, tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_a_torch_bundle_is_installed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    import splitload.torch

    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    splitload.torch.save(module, torch.ones(1, 8), tmp_path / "a.splitload", num_stages=2)
    for _ in range(2):
        assert install(tmp_path / "a.splitload", tmp_path / "b.splitload").format == "splitload-torch"
    with torch.device("meta"):
        loaded = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    splitload.torch.load(loaded, tmp_path / "b.splitload", verify="hashes")
    assert torch.equal(loaded(torch.ones(1, 8)), module(torch.ones(1, 8)))
    assert main(["run", str(tmp_path / "b.splitload")]) == 1
    assert "splitload.torch.load(module, bundle) loads it" in capsys.readouterr().err


def test_no_room_is_told_before_the_copy(chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OutputError, match="MiB are free; make room"):
        install(chain_bundle, tmp_path / "here.splitload")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_into_a_bundle(
    chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What lies in a bundle and is not of it makes the bundle one that `verify` refuses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    here = tmp_path / "here.splitload"
    install(chain_bundle, here)
    (tmp_path / "link").symlink_to(here)
    (here / "tails").mkdir()
    for place in (here / "in.splitload", here / "tails" / "in.splitload", tmp_path / "link" / "in.splitload"):
        assert main(["install", str(chain_bundle), str(place)]) == 1
        assert f"'{here.resolve()}' is a bundle, and nothing else may lie in it" in capsys.readouterr().err
    for place in (here, here / "outputs", here / "tails" / "outputs"):
        assert main(["run", str(here), "-o", str(place)]) == 1
        assert f"'{here.resolve()}' is a bundle, and nothing else may lie in it" in capsys.readouterr().err
    search = ["train", "zoo:mobilenet_v1", "--device", "s20", "-o"]
    for words in (
        ["profile", "zoo:mobilenet_v1", "--device", "s20", "-o", str(here / "p.json")],
        [*search, str(tmp_path / "new.splitload"), "--curve", str(here / "c.csv")],
        [*search, str(here), "--curve", str(here / "tails" / "c.csv")],
        [*search, str(here), "--checkpoint", str(tmp_path / "link" / "kept")],
        [*search, str(here / "new.splitload")],
    ):
        assert main(words) == 1
        assert f"'{here.resolve()}' is a bundle, and nothing else may lie in it" in capsys.readouterr().err
    assert clients.main(["--folder", str(here / "kept")]) == 1
    assert f"'{here.resolve()}' is a bundle, and nothing else may lie in it" in capsys.readouterr().err
    with pytest.raises(argparse.ArgumentTypeError, match="is a bundle, and nothing else may lie in it"):
        record_file(str(here / "record.json"))
    for words, reason in (
        (["--curve", "a.splitload"], "--curve 'a.splitload' is where the bundle goes"),
        (["--checkpoint", f"{tmp_path}/a.splitload"], "a.splitload' is where the bundle goes"),
        (["--curve", "c", "--checkpoint", f"{tmp_path}/c"], "--curve and --checkpoint are both 'c'"),
    ):
        assert main([*search, "a.splitload", *words]) == 2
        assert reason in capsys.readouterr().err
    assert not list(tmp_path.glob("[!hl]*")), "no work was done, not even a cache was made"
    (here / "tails").rmdir()
    assert content(here) == content(chain_bundle)
    assert verify(here).files == len(content(chain_bundle))
