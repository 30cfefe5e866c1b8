"""Writing a bundle: whole or not at all, in the place of its like and of nothing else; full disks, other faults."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import splitload.bundle.read
import splitload.bundle.replace
from splitload.base.errors import BundleError, OutputError
from splitload.base.sealed import KEY
from splitload.bundle.manifest import MANIFEST
from splitload.bundle.read import read_manifest
from splitload.bundle.tails import alone
from splitload.bundle.write import check_target, write_manifest, writing
from splitload.cli import main


@pytest.fixture
def data(chain_bundle: Path) -> Any:
    data = json.loads((chain_bundle / MANIFEST).read_text())
    del data[KEY]  # what is changed by hand has no hash of its own
    return data


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def fill(folder: Path, source: Path, mark: str) -> None:
    for file in source.iterdir():
        shutil.copyfile(file, folder / file.name)
    write_manifest(folder, read_manifest(folder)._replace(device=mark))


@pytest.mark.parametrize("exchange", [True, False], ids=["one step", "two renames"])
def test_writing_makes_and_replaces(
    chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(splitload.bundle.replace, "_exchange", lambda first, second: False)
    target = tmp_path / "new.splitload"
    for mark in ("first", "second"):
        with writing(target) as folder:
            fill(folder, chain_bundle, mark)
        assert read_manifest(target, "hashes").device == mark
        assert names(tmp_path) == ["new.splitload"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("fault", [RuntimeError("no"), KeyboardInterrupt(), BundleError("no")], ids=repr)
@pytest.mark.parametrize("old", [True, False])
def test_writing_that_fails_changes_nothing(
    chain_bundle: Path, tmp_path: Path, fault: BaseException, old: bool
) -> None:
    target = tmp_path / "new.splitload"
    if old:
        shutil.copytree(chain_bundle, target, copy_function=shutil.copyfile)
    with pytest.raises(type(fault)), writing(target) as folder:
        fill(folder, chain_bundle, "new")
        raise fault
    assert names(tmp_path) == ([target.name] if old else [])
    if old:
        assert read_manifest(target, "hashes") == read_manifest(chain_bundle)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="folders are locked there")
def test_no_tail_is_written_between_the_last_look_and_the_exchange(
    chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    target = Path(shutil.copytree(chain_bundle, tmp_path / "new.splitload", copy_function=shutil.copyfile))
    real, locked = splitload.bundle.replace._replace, []

    def replace(made: Path, there: Path) -> None:
        descriptor = os.open(there, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            locked.append(there)
        finally:
            os.close(descriptor)
        real(made, there)

    monkeypatch.setattr(splitload.bundle.replace, "_replace", replace)
    with writing(target) as folder:
        fill(folder, chain_bundle, "new")
    assert locked == [target]
    with alone(target):  # and it is free again
        pass


@pytest.mark.parametrize("call", ["sync_tree", "_replace", "write"])
def test_full_disk(chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    target = tmp_path / "new.splitload"
    shutil.copytree(chain_bundle, target, copy_function=shutil.copyfile)

    def fail(*arguments: Any, **_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call != "write":
        monkeypatch.setattr(splitload.bundle.replace, call, fail)
    with pytest.raises(OutputError, match="No space left on device; nothing was changed"), writing(target) as folder:
        fill(folder, chain_bundle, "new")
        if call == "write":
            fail()
    assert read_manifest(target, "hashes") == read_manifest(chain_bundle)
    assert names(tmp_path) == [target.name]


def test_second_rename_that_fails_brings_the_old_bundle_back(
    chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new.splitload"
    shutil.copytree(chain_bundle, target, copy_function=shutil.copyfile)
    real = Path.rename

    def rename(self: Path, to: Path) -> Path:
        if self.suffix == ".making":
            raise OSError(errno.EIO, "Input/output error")
        return real(self, to)

    monkeypatch.setattr(splitload.bundle.replace, "_exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OutputError, match="Input/output error"), writing(target) as folder:
        fill(folder, chain_bundle, "new")
    assert read_manifest(target, "hashes") == read_manifest(chain_bundle)
    assert names(tmp_path) == [target.name]


def test_killed_in_the_middle_leaves_the_old_bundle(own_bundle: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from splitload.bundle.write import writing
with writing(Path(sys.argv[1])) as folder:
    (folder / "portable-00.onnx").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(own_bundle)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    read_manifest(own_bundle, "hashes")
    with writing(own_bundle) as folder:  # what the killed one left behind is not in the way
        fill(folder, own_bundle, "again")
    assert read_manifest(own_bundle, "hashes").device == "again"


@pytest.mark.parametrize("make", ["file", "folder", "other manifest", "damaged manifest"])
def test_target_that_is_no_bundle_is_left_alone(tmp_path: Path, make: str) -> None:
    target = tmp_path / "precious"
    if make == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    if make == "other manifest":
        (target / MANIFEST).write_text('{"name": "a web page"}')
    if make == "damaged manifest":
        (target / MANIFEST).write_text("{")
    with pytest.raises(OutputError, match="exists and is not a bundle"):
        check_target(target)
    with pytest.raises(OutputError), writing(target):
        raise AssertionError("not reached")
    assert target.exists()


def test_a_bundle_of_a_later_version_may_be_replaced(own_bundle: Path, data: Any) -> None:
    (own_bundle / MANIFEST).write_text(json.dumps({**data, "version": 4}))
    check_target(own_bundle)


def test_target_that_is_a_link(own_bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    for place in (own_bundle, tmp_path / "nowhere"):
        link.symlink_to(place)
        with pytest.raises(OutputError, match="is a link"):
            check_target(link)
        link.unlink()


def test_target_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        check_target(tmp_path / "no" / "new.splitload")


def test_target_in_a_folder_that_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(OutputError, match=r"permission denied; give another place$"):
        check_target(tmp_path / "new.splitload")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "zoo:mobilenet_v1", "--device", "s20"]) == 1
    assert "cannot write to '.': permission denied; give another place with -o" in capsys.readouterr().err


@pytest.mark.root
def test_really_full_disk(chain_bundle: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)], check=True)
    try:
        with (
            pytest.raises(OutputError, match="No space left on device"),
            writing(disk / "new.splitload") as folder,
        ):
            (folder / "weights.bin").write_bytes(b"x" * (1 << 16))
        assert names(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
