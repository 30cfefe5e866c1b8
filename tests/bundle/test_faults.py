"""What an error says of a bundle or a tail is true, whichever step of writing it fails."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import splitload.bundle.replace
from splitload.base.errors import OutputError
from splitload.bundle.read import read_manifest
from splitload.bundle.write import write_manifest, writing

STEPS = ("fsync", "rename", "replace", "chmod", "mkdir", "rmdir", "unlink")


class Fault:
    """Makes one call of the system fail, counted from 0 over all that change something."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = -1
        self.calls: list[str] = []
        for name in STEPS:
            monkeypatch.setattr(os, name, self._failing(name, getattr(os, name)))

    def _failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) - 1 == self.at:
                raise OSError(errno.EIO, "Input/output error")
            return real(*arguments, **named)

        return call

    @contextmanager
    def __call__(self, at: int) -> Iterator[None]:
        """Let call number `at` fail."""
        self.at, self.calls = at, []
        yield
        self.at = -1


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Fault:
    return Fault(monkeypatch)


@pytest.mark.parametrize("exchange", [True, False], ids=["one step", "two renames"])
def test_an_error_says_which_bundle_is_there(
    chain_bundle: Path, tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(splitload.bundle.replace, "_exchange", lambda first, second: False)
    target = tmp_path / "b.splitload"
    told = {"new": 0, "unchanged": 0, "unsaid": 0}
    for step in range(200):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(chain_bundle, target, copy_function=shutil.copyfile)
        error = None
        with fault(step):
            try:
                with writing(target) as folder:
                    for file in chain_bundle.iterdir():
                        shutil.copyfile(file, folder / file.name)
                    write_manifest(folder, read_manifest(folder)._replace(device="new"))
            except OutputError as raised:
                error = str(raised)
        device = read_manifest(target, "hashes").device
        if error is None:
            told["unsaid"] += 1
            assert device == "new"
        elif "nothing was changed" in error:
            told["unchanged"] += 1
            assert device != "new"
        else:
            told["new"] += 1
            assert f"'{target}' is the new bundle, whole" in error
            assert device == "new"
        assert not [path for path in tmp_path.iterdir() if path != target and path.suffix != ".making"] or not exchange
        if step >= len(fault.calls):
            break
    else:
        pytest.fail("no end of steps")
    assert min(told.values()) > 0, told


def test_a_rename_that_cannot_be_undone_says_where_the_old_bundle_is(
    chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "b.splitload"
    shutil.copytree(chain_bundle, target, copy_function=shutil.copyfile)
    real = os.rename

    def rename(source: Path, to: Path) -> None:
        if Path(to) == target:
            raise OSError(errno.EIO, "Input/output error")
        real(source, to)

    monkeypatch.setattr(splitload.bundle.replace, "_exchange", lambda first, second: False)
    monkeypatch.setattr(os, "rename", rename)
    where = r"nothing is at .* now.*; the old bundle is at '(.*)'"
    with pytest.raises(OutputError, match=where) as raised, writing(target) as folder:
        (folder / "file").write_text("x")
    kept = Path(str(raised.value).rpartition("at '")[2].removesuffix("'"))
    assert read_manifest(kept, "hashes") == read_manifest(chain_bundle)


def test_an_interrupt_says_if_the_new_bundle_is_there(
    chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "b.splitload"

    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    def write() -> None:
        with writing(target) as folder:
            for file in chain_bundle.iterdir():
                shutil.copyfile(file, folder / file.name)

    with monkeypatch.context() as patch:
        patch.setattr(splitload.bundle.replace, "sync_tree", lambda folder, read_only: interrupted(folder))
        with pytest.raises(KeyboardInterrupt) as raised:
            write()
    assert (str(raised.value), target.exists()) == ("", False)
    monkeypatch.setattr(splitload.bundle.replace, "sync", interrupted)
    with pytest.raises(KeyboardInterrupt, match="is the new bundle, whole"):
        write()
    assert read_manifest(target, "hashes") == read_manifest(chain_bundle)


@pytest.mark.parametrize(("number", "raises"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_file_system_that_flushes_no_folders_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raises: bool
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    if raises:
        with pytest.raises(OSError, match="Input/output error"):
            splitload.bundle.replace.sync(tmp_path)
    else:
        splitload.bundle.replace.sync(tmp_path)


def test_files_of_a_bundle_cannot_be_overwritten_in_place(chain_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.splitload"
    with writing(target) as folder:
        for file in chain_bundle.iterdir():
            shutil.copyfile(file, folder / file.name)
    assert all(file.stat().st_mode & 0o222 == 0 for file in target.iterdir())
    before = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in target.iterdir()}
    as_user = []
    if os.access(next(target.iterdir()), os.W_OK):  # who may do everything is not refused
        if not shutil.which("setpriv"):
            pytest.skip("needs setpriv, to give up the rights of root")
        as_user = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    command = [*as_user, "cp", "-r", f"{chain_bundle}/.", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    assert done.returncode == 1
    assert done.stderr.count("Permission denied") == len(before)
    assert {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in target.iterdir()} == before
