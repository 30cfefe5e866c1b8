"""The disk of an emulated device: when its reads are done, and what is on it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from splitload.base.packages import has
from splitload.studies.emulated_disk import FILE, EmulatedDisk, Pace


def test_reads_are_done_one_after_the_other() -> None:
    pace = Pace(1e6)
    assert pace.done_s(1000, 10.0) == pytest.approx(10.001 - 0.004)
    assert pace.done_s(5000, 10.0) == pytest.approx(10.002), "two that come at once take as long as one of both"
    assert pace.done_s(1000, 10.004) == pytest.approx(10.003), "a read that comes a little late lost nothing"
    assert pace.done_s(1000, 20.0) == pytest.approx(20.001 - 0.004), "and rest saves nothing up"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not has("mfusepy"), reason="needs root and mfusepy")
def test_what_is_on_a_disk_stays(tmp_path: Path) -> None:
    image, folder = tmp_path / "a.img", tmp_path / "a"
    for number in range(2):
        disk = EmulatedDisk(image, folder, 50_000_000)
        assert os.path.ismount(folder)
        if number:
            assert (folder / "file").read_text() == "text"
        (folder / "file").write_text("text")
        os.link(folder / "file", folder / f"other-{number}")
        disk.close()
        disk.close()
    assert not os.path.ismount(folder) and not (tmp_path / "a.fuse" / FILE).exists()
    assert str(image) not in subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True).stdout
    left = EmulatedDisk(image, folder, 50_000_000)  # of a study that was killed
    again = EmulatedDisk(image, folder, 50_000_000)
    assert (folder / "other-1").read_text() == "text"
    again.close()
    left.close()
