"""Disks that are full, of a device and of a desk: one clear line, and nothing half-written counts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lying_devices import connected
from service_threads import TOKEN, serving

from splitload.base.errors import DeviceError, ModelError, OutputError
from splitload.devices.journal import Journal
from splitload.devices.remote import RemoteMachine
from splitload.measure.job import LoadModel

pytestmark = pytest.mark.root
JOB = LoadModel("stock", "m.ort", (), steady=False)
FIGURES = {"ttfo_s": 0.3, "load_s": 0.1, "first_inference_s": 0.2, "steady_runs_s": []}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            return disk / "filler"
    raise AssertionError


def test_a_device_whose_disk_is_full(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    model = tmp_path / "job" / "m.ort"
    model.write_bytes(np.random.default_rng(0).bytes(3 << 20))
    with serving(small_disk / "device", lambda *_: dict(FIGURES)) as url, connected(url, TOKEN) as device:
        machine = RemoteMachine(device)
        send, fillers = machine.transfer.send, []

        def filled(*words: object, **named: object) -> None:
            fillers.append(fill(small_disk))  # after the device has promised the room
            send(*words, **named)  # type: ignore[arg-type]

        machine.transfer.send = filled  # type: ignore[assignment,method-assign]
        with pytest.raises(DeviceError, match=r"cannot write into the stage cache .*No space left.*on the device"):
            machine.run(JOB, tmp_path / "job", ModelError)
        machine.transfer.send = send  # type: ignore[method-assign]
        with pytest.raises(DeviceError, match=r"lacks \d+ bytes for a stage .*on the device"):
            machine.run(JOB, tmp_path / "job", ModelError)
        fillers[0].unlink()
        assert machine.run(JOB, tmp_path / "job", ModelError) == FIGURES
    (kept,) = (small_disk / "device" / "files" / "files").iterdir()
    assert kept.read_bytes() == model.read_bytes()


def test_a_desk_whose_disk_is_full(small_disk: Path) -> None:
    journal = Journal(small_disk / "x.journal")
    assert journal.answer(("a",), lambda: [1]) == [1]
    filler = fill(small_disk)
    with pytest.raises(OutputError, match="cannot keep samples in"):
        journal.answer(("b",), lambda: ["x" * 100_000])
    filler.unlink()
    again = Journal(small_disk / "x.journal")
    assert again.answer(("a",), lambda: [2]) == [1]
    assert again.answer(("b",), lambda: [3]) == [3]  # what was half-written does not count


def test_a_desk_without_room_for_an_output(small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "m.ort").write_bytes(b"0000ORTM")
    job = LoadModel("stock", "m.ort", (), steady=False, outputs=True)

    def answer(_: object, folder: Path, *__: object) -> dict[str, object]:
        (folder / "output-0.npy").write_bytes(bytes(8 << 20))
        return {**FIGURES, "outputs": ["output-0.npy"]}

    with (
        serving(tmp_path / "device", answer) as url,
        connected(url, TOKEN) as device,
        pytest.raises(OutputError, match=r"cannot write .*No space left"),
    ):
        RemoteMachine(device).run(job, small_disk, ModelError)
    assert [each.name for each in small_disk.iterdir()] == ["m.ort"]
