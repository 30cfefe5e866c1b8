"""Folders for work in progress: gone when the work ends, however it ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

from splitload.base.atomic import write_text
from splitload.base.scratch import FOREIGN_S, scratch_folder, sweep
from splitload.cli import main

WORK = (
    "import sys, pathlib, time\n"
    "from splitload.base.scratch import scratch_folder\n"
    "with scratch_folder(pathlib.Path(sys.argv[1]), sys.argv[2]) as folder:\n"
    "    print(folder, flush=True)\n"
    "    time.sleep(60)\n"
)


def working(parent, prefix):
    """Return a process that works in a scratch folder, once it does."""
    words = [sys.executable, "-c", WORK, parent, prefix]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


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
    other, theirs = working(tmp_path, ".x.")
    with other:
        (tmp_path / ".y.left.making").mkdir()
        with scratch_folder(tmp_path, ".x.") as ours:
            assert {str(path) for path in tmp_path.glob(".x.*")} == {theirs, str(ours)}
        other.send_signal(signal.SIGKILL)
    assert [str(path) for path in tmp_path.glob(".x.*")] == [theirs]
    with scratch_folder(tmp_path, ".x."):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".y.left.making"]


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
@pytest.mark.parametrize("words", [["cache"], ["cache", "clear"]])
def test_the_next_command_removes_what_a_terminated_one_left_in_the_cache(tmp_path, monkeypatch, capsys, words):
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path))
    entry = tmp_path / "graphs" / "entry"
    entry.mkdir(parents=True)
    left = [working(entry, ".measure-"), working(tmp_path / "graphs", ".entry."), working(tmp_path, ".trial-")]
    alive, theirs = working(tmp_path, ".measure-")
    for process, _ in left:
        process.send_signal(signal.SIGTERM)
        process.wait()
        process.stdout.close()
    with alive:
        assert all(os.path.isdir(path) for _, path in left)  # noqa: PTH112
        assert main(words) == 0
        capsys.readouterr()
        assert [str(path) for path in tmp_path.rglob("*.making")] == [theirs]
        assert entry.is_dir() == (words == ["cache"])
        alive.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
def test_what_another_host_may_work_in_stays_for_a_day(tmp_path):
    """Its locks may not be seen here."""
    top, young, old = (tmp_path / f".x.{word}.0badcafe.making" for word in ("in_a_top", "insideit", "old_1234"))
    then = time.time() - FOREIGN_S - 1
    for folder in (top, young, old):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "file").touch()
        for path in (folder / "inner" / "file", folder / "inner", folder):
            os.utime(path, (then, then))
    os.utime(top)
    os.utime(young / "inner" / "file")  # it was written to a moment ago
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == [top, young]


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
@pytest.mark.parametrize(
    "name", [".build.making", ".making", ".12345678.making", ".x.1.0badcafe.making", "x.abcdefgh.0badcafe.making"]
)
def test_what_is_not_ours_stays(tmp_path, name):
    """Only the whole form of a name that `scratch_folder` chooses counts, and only where it is used."""
    with scratch_folder(tmp_path, ".") as made:
        ours = made.name
    places = [tmp_path / name, tmp_path / "graphs" / "entry" / name, tmp_path / "other" / "entry" / ours]
    for place in places:
        place.mkdir(parents=True)
        os.utime(place, (1e9, 1e9))
    gone = [tmp_path / ours, tmp_path / "other" / ours, tmp_path / "graphs" / "entry" / ours]
    for place in gone:
        place.mkdir()
    sweep(tmp_path)
    with scratch_folder(tmp_path, "."):
        pass
    assert all(place.is_dir() for place in places)
    assert not any(place.exists() for place in gone)


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there, and no locks on folders")
@pytest.mark.parametrize("prefix", [".a**b.", ".m[1].onnx.", ".?.", f".{'n' * 240}.", f".{'ü' * 120}.", ".\udce9."])
def test_any_name_makes_a_prefix(tmp_path, prefix):
    with scratch_folder(tmp_path, prefix) as made:
        left = made.name
    (tmp_path / left).mkdir()
    with scratch_folder(tmp_path, prefix) as made:
        assert [path.name for path in tmp_path.iterdir()] == [made.name]
        assert len(os.fsencode(made.name)) < 250
        assert made.name.startswith(prefix[:90])


@pytest.mark.parametrize("name", ["n" * 250, "ü" * 120])
def test_a_long_name_is_written(tmp_path, name):
    write_text(tmp_path / name, "x", "a text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
def test_links_are_not_followed(tmp_path):
    with scratch_folder(tmp_path, ".x.") as made:
        name = made.name
    outside = tmp_path / "outside" / name
    outside.mkdir(parents=True)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / name).symlink_to(outside)
    (cache / "room").symlink_to(outside.parent)
    sweep(cache)
    assert outside.is_dir()
    sweep(tmp_path)
    assert not outside.exists()
