"""Cold files and slow storage: evicted and verified, capped and put back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from runtime_models import INPUTS, feeds

from splitload.base.errors import StageError
from splitload.measure import pagecache, storage
from splitload.measure.sampling import Arm, run_arms


def test_eviction_is_verified(evictable: Path) -> None:
    assert pagecache.resident_bytes([evictable]) == 0
    evictable.read_bytes()
    assert pagecache.resident_bytes([evictable]) >= 2_000_000
    pagecache.evict([evictable])
    assert pagecache.resident_bytes([evictable]) == 0
    (empty := evictable.with_name("empty")).touch()
    assert pagecache.resident_bytes([empty]) == 0


def test_what_cannot_be_evicted(evictable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagecache, "_PAUSE_S", 0)
    monkeypatch.setattr(pagecache.os, "posix_fadvise", lambda *_: None)
    evictable.read_bytes()
    with pytest.raises(StageError, match=r"cannot evict 'file\.bin' .*: \d+ of 2000000 bytes stay"):
        pagecache.evict([evictable])
    monkeypatch.delattr(pagecache.os, "posix_fadvise")
    with pytest.raises(StageError, match="--cold needs posix_fadvise and mincore"):
        pagecache.check()


def test_cold_samples(evictable: Path, chain_bundle: Path, tmp_path: Path) -> None:
    arm = Arm("splitload", chain_bundle)
    assert len(arm.all_files()) > 4  # graphs, weights and the manifest
    (row,) = run_arms([arm], INPUTS, feeds(), 1, cold=True, storage_s=lambda size: size / 1e3)["splitload"]
    assert row["touched_bytes"] > 0
    assert row["storage_s"] == row["touched_bytes"] / 1e3
    assert row["limit_s"] == max(row["storage_s"], row["steady_inference_s"])
    (row,) = run_arms([arm], INPUTS, feeds(), 1, cold=True)["splitload"]
    assert "limit_s" not in row


def test_capping_needs_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage.os, "geteuid", lambda: 1000, raising=False)
    with pytest.raises(StageError, match=r"^--storage-mbps cannot cap reads here: it needs root$"):
        storage.Controller.find()
    monkeypatch.setattr(storage.os, "geteuid", lambda: 0)
    with pytest.raises(StageError, match="it needs Linux with cgroups"):
        storage.Controller.find(tmp_path)
    (tmp_path / "mounts").write_text("tmpfs /tmp tmpfs rw 0 0\n")
    (tmp_path / "cgroup").write_text("0::/\n")
    with pytest.raises(StageError, match="no cgroup controller for block devices is mounted"):
        storage.Controller.find(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_controllers_are_found(version: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage.os, "geteuid", lambda: 0, raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "cgroup.procs").touch()
    (tmp_path / "cgroup.controllers").write_text("cpu io memory\n")
    kind = f"x {tmp_path} cgroup2 rw 0 0" if version == 2 else f"cgroup {tmp_path} cgroup rw,blkio 0 0"
    (tmp_path / "mounts").write_text(f"tmpfs /tmp tmpfs rw 0 0\n{kind}\n")
    (tmp_path / "cgroup").write_text("7:blkio:/home\n3:cpu:/x\n0::/home\n")
    assert storage.Controller.find(tmp_path) == storage.Controller(tmp_path, version, tmp_path / "home")
    (tmp_path / "cgroup").write_text("7:blkio:/outside\n0::/outside\n")  # as a container sees it
    assert storage.Controller.find(tmp_path).home == tmp_path


@pytest.mark.parametrize(
    ("version", "file", "text"),
    [(1, "blkio.throttle.read_bps_device", "8:0 5000"), (2, "io.max", "8:0 rbps=5000")],
)
def test_what_is_written_to_a_group(
    version: int, file: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(storage, "disk_of", lambda file: "8:0")
    monkeypatch.setattr(storage.Path, "rmdir", lambda folder: None)  # plain files would keep a folder
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    with storage.Controller(tmp_path, version, tmp_path).capped([tmp_path, tmp_path], 5000):
        (group,) = tmp_path.glob("splitload-bench-*")
        assert (group / file).read_text() == text
        assert (group / "cgroup.procs").read_text() == str(os.getpid())
        assert not (tmp_path / "cgroup.procs").exists()
    assert (tmp_path / "cgroup.procs").read_text() == str(os.getpid())
    assert (tmp_path / "cgroup.subtree_control").read_text() == ("+io" if version == 2 else "cpu\n")


def test_a_partition_is_capped_by_its_disk(tmp_path: Path) -> None:
    number = tmp_path.stat().st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    with pytest.raises(StageError, match="lies on no disk"):
        storage.disk_of(tmp_path, tmp_path / "none")
    disk = tmp_path / "sda"
    (disk / "sda1").mkdir(parents=True)
    (disk / "dev").write_text("8:0\n")
    devices = tmp_path / "block"
    devices.mkdir()
    (devices / name).symlink_to(disk / "sda1")
    assert storage.disk_of(tmp_path, devices) == name
    (disk / "sda1" / "partition").touch()
    assert storage.disk_of(tmp_path, devices) == "8:0"


@pytest.mark.root
def test_storage_is_capped_and_the_group_removed(evictable: Path) -> None:
    controller = storage.Controller.find()

    def groups() -> list[Path]:
        return list(controller.root.glob("splitload-bench-*"))

    with controller.capped([evictable], 1_000_000_000):
        assert len(groups()) == 1
        with storage.reader(evictable.parent, 3_000_000) as read_s:
            assert read_s(2_000_000) > 0
            assert read_s(3_000_000) > 0
    assert groups() == []
    with pytest.raises(KeyboardInterrupt), controller.capped([evictable], 1_000_000_000):
        raise KeyboardInterrupt
    assert groups() == []
