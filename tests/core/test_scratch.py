"""Folders for work in progress: gone when the work ends, however it ends."""

import signal
import subprocess
import sys

import pytest

from splitload.scratch import scratch_folder


def test_is_removed_at_the_end(tmp_path):
    with scratch_folder(tmp_path, ".x.") as folder:
        (folder / "file").write_text("half")
        assert folder.name.startswith(".x.")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path, ".x."):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_stays_where_it_was_renamed_to(tmp_path):
    with scratch_folder(tmp_path, ".x.") as folder:
        folder.rename(tmp_path / "done")
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
def test_clears_what_a_killed_process_left_and_nothing_else(tmp_path):
    code = (
        "import sys, pathlib, time\n"
        "from splitload.scratch import scratch_folder\n"
        "with scratch_folder(pathlib.Path(sys.argv[1]), '.x.') as folder:\n"
        "    print(folder, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        theirs = other.stdout.readline().strip()
        (tmp_path / ".y.left.making").mkdir()
        with scratch_folder(tmp_path, ".x.") as ours:
            assert {str(path) for path in tmp_path.glob(".x.*")} == {theirs, str(ours)}
        other.send_signal(signal.SIGKILL)
    assert [str(path) for path in tmp_path.glob(".x.*")] == [theirs]
    with scratch_folder(tmp_path, ".x."):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".y.left.making"]
