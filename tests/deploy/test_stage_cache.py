"""The stage cache: transfers resume, every byte is checked, whole stages are evicted and none that is in use."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitload.base import pieces
from splitload.base.errors import OutputError, StageError
from splitload.bundle.manifest import File
from splitload.deploy.stage_cache import MissingFileError, StageCache
from splitload.deploy.stage_names import stage_key

CAP_BYTES = 3000


def file(name: str, data: bytes) -> File:
    return File(name, len(data), hashlib.sha256(data).hexdigest())


A, B, C = (bytes([number]) * 1000 for number in (1, 2, 3))
ONE, TWO, THREE = ((file(f"{name}.ort", data),) for name, data in (("one", A), ("two", B), ("three", C)))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[StageCache]:
    made = StageCache(tmp_path / "cache", CAP_BYTES)
    yield made
    made.close()


def keep(cache: StageCache, files: tuple[File, ...], *data: bytes, release: bool = True) -> Path:
    key = stage_key(files)
    missing = cache.request(key, files)
    for each, bytes_ in zip(files, data, strict=True):
        if each.sha256 in missing:
            assert cache.write(each, 0, bytes_) == len(bytes_)
    place = cache.place(key, files)
    if release:
        cache.release(key)
    return place


def test_a_stage_lies_there_under_its_names(cache: StageCache) -> None:
    files = (file("graph.onnx", A), file("weights.bin", B))
    place = keep(cache, files, A, B)
    assert {each.name: each.read_bytes() for each in place.iterdir()} == {"graph.onnx": A, "weights.bin": B}
    assert cache.stages() == [stage_key(files)]
    assert cache.request(stage_key(files), files) == {}
    assert cache.read(files[0].sha256, 990, 100) == A[990:]


def test_a_transfer_goes_on_where_it_stopped(cache: StageCache, tmp_path: Path) -> None:
    (one,) = ONE
    assert cache.request(stage_key(ONE), ONE) == {one.sha256: 0}
    assert cache.write(one, 0, A[:300]) == 300
    cache.close()
    cache = StageCache(tmp_path / "cache", CAP_BYTES)
    assert cache.request(stage_key(ONE), ONE) == {one.sha256: 300}
    assert cache.write(one, 0, A[:500]) == 300  # what is there already, or leaves a gap, changes nothing
    assert cache.write(one, 400, A[400:]) == 300
    assert cache.write(one, 300, A[300:]) == 1000
    assert cache.place(stage_key(ONE), ONE).joinpath("one.ort").read_bytes() == A
    cache.close()


def test_a_file_that_arrives_damaged_is_forgotten(cache: StageCache) -> None:
    (one,) = ONE
    cache.request(stage_key(ONE), ONE)
    with pytest.raises(MissingFileError, match="arrived damaged"):
        cache.write(one, 0, B)
    assert cache.write(one, 0, b"") == 0


def test_what_was_damaged_on_disk_is_found_by_the_next_process(cache: StageCache, tmp_path: Path) -> None:
    place = keep(cache, ONE, A)
    cache.close()
    (place / "one.ort").write_bytes(B)
    cache = StageCache(tmp_path / "cache", CAP_BYTES)
    with pytest.raises(MissingFileError, match="is damaged"):
        cache.place(stage_key(ONE), ONE)
    assert cache.request(stage_key(ONE), ONE) == {ONE[0].sha256: 0}
    assert keep(cache, ONE, A).joinpath("one.ort").read_bytes() == A
    cache.close()


def test_the_stage_used_longest_ago_is_evicted_first(cache: StageCache) -> None:
    small = StageCache(cache._folder.with_name("small"), 2500)
    keep(small, ONE, A)
    keep(small, TWO, B)
    keep(small, ONE, A)
    keep(small, THREE, C)
    assert small.stages() == [stage_key(ONE), stage_key(THREE)]
    assert small.used_bytes() == 2000
    small.close()


def test_a_stage_in_use_is_never_evicted(cache: StageCache) -> None:
    small = StageCache(cache._folder.with_name("small"), 1500)
    place = keep(small, ONE, A, release=False)
    with pytest.raises(OutputError, match=r"lacks 500 bytes for a stage of 1000, beside 1 in use.*--cache-size"):
        small.request(stage_key(TWO), TWO)
    assert (place / "one.ort").exists()
    small.release(stage_key(ONE))
    keep(small, TWO, B)
    assert small.stages() == [stage_key(TWO)]
    assert not place.exists()
    small.close()


def test_files_that_stages_share_are_there_once_and_stay_with_the_last(cache: StageCache) -> None:
    shared = file("shared.bin", C)
    keep(cache, (*ONE, shared), A, C)
    keep(cache, (*TWO, shared), B, C)
    assert cache.used_bytes() == 3000
    cache.remove(stage_key((*ONE, shared)))
    assert cache.used_bytes() == 2000
    assert cache.request(stage_key((*TWO, shared)), (*TWO, shared)) == {}


def test_what_a_client_used_that_is_gone_is_evicted_placed_or_not(cache: StageCache) -> None:
    small = StageCache(cache._folder.with_name("small"), CAP_BYTES)
    for files, data, user in ((ONE, A, "dead"), (TWO, B[:500], "dead"), (THREE, C[:500], "live")):
        small.request(stage_key(files), files, user)
        small.write(files[0], 0, data)
    four = (file("four.ort", bytes([4]) * 1000),)
    with pytest.raises(OutputError, match="beside 3 in use"):
        small.request(stage_key(four), four, "live")
    small.part_from("dead")
    small.release(stage_key(ONE), "dead")  # late, it ends nothing
    assert small.request(stage_key(four), four, "live") == {four[0].sha256: 0}
    assert small.request(stage_key(THREE), THREE, "live") == {THREE[0].sha256: 500}
    assert small.used_bytes() == 500
    small.close()


def test_all_that_is_not_in_use_can_be_removed(cache: StageCache) -> None:
    keep(cache, ONE, A)
    keep(cache, TWO, B, release=False)
    key = stage_key(THREE)
    cache.request(key, THREE)
    cache.write(THREE[0], 0, C[:300])  # and the client turns to something else
    cache.release(key)
    assert cache.clear() == len(B)
    assert cache.stages() == [stage_key(TWO)]
    cache.release(stage_key(TWO))
    assert (cache.clear(), cache.stages()) == (0, [])


def test_a_cache_that_was_removed_is_one_line(cache: StageCache) -> None:
    keep(cache, ONE, A)
    shutil.rmtree(cache._folder)
    with pytest.raises(OutputError, match="is gone; start the program again"):
        cache.request(stage_key(TWO), TWO)


def test_files_lie_in_folders_and_are_made_of_others(cache: StageCache) -> None:
    files = (file("x.npy", A), file("arm/graph.onnx", A + B))
    keep(cache, ONE, A)
    key = stage_key(files)
    assert cache.request(key, files) == {files[1].sha256: 0}
    gone = ("f" * 64, 0, 10)
    assert cache.copy(files[1], 0, [(ONE[0].sha256, 0, 400), gone, (ONE[0].sha256, 400, 600)]) == 400
    assert cache.copy(files[1], 400, [(ONE[0].sha256, 400, 600)]) == 1000
    assert cache.copy(files[1], 0, [(ONE[0].sha256, 0, 1000)]) == 1000  # it is there
    assert cache.copy(files[1], 1000, [(ONE[0].sha256, 900, 200)]) == 1000  # the file ends before
    assert cache.write(files[1], 1000, B) == 2000
    place = cache.place(key, files)
    assert (place / "arm" / "graph.onnx").read_bytes() == A + B
    cache.release(key)
    cache.remove(key)
    assert not place.exists()


def test_names_and_keys_are_those_of_a_stage(cache: StageCache) -> None:
    for name in ("../x", "a/../x", "/x", "a//x", "a\\x", "a/b/c/d/x", "x\n", ".", ""):
        files = (File(name, 1, "0" * 64),)
        with pytest.raises(StageError, match="no plain name"):
            cache.request(stage_key(files), files)
    with pytest.raises(StageError, match="another key"):
        cache.request(stage_key(ONE), TWO)
    with pytest.raises(StageError, match="no plain name"):
        cache.write(File("x", 1, "../../etc/passwd"), 0, b"x")
    with pytest.raises(StageError, match="something else than a SHA-256"):
        cache.read("../stages", 0, 1)


def test_one_process_at_a_time_has_a_cache(cache: StageCache) -> None:
    with pytest.raises(OutputError, match="a second 'splitload serve' needs a cache of its own"):
        StageCache(cache._folder, CAP_BYTES)


def test_a_place_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot keep stages in"):
        StageCache(tmp_path / "file", CAP_BYTES)


def test_room_is_kept_for_what_was_promised_and_has_not_come_yet(cache: StageCache) -> None:
    small = StageCache(cache._folder.with_name("small"), 1500)
    small.request(stage_key(ONE), ONE)
    with pytest.raises(OutputError, match="lacks 500 bytes"):
        small.request(stage_key(TWO), TWO)
    small.write(ONE[0], 0, A[:300])
    with pytest.raises(OutputError, match="lacks 500 bytes"):
        small.request(stage_key(TWO), TWO)
    small.close()


def test_a_stage_that_cannot_be_made_leaves_nothing_that_stays(cache: StageCache) -> None:
    files = (file("a", A), file("a/b", B))  # a file, and a folder of the same name
    cache.request(stage_key(files), files)
    for each, data in zip(files, (A, B), strict=True):
        cache.write(each, 0, data)
    with pytest.raises(OutputError):
        cache.place(stage_key(files), files)
    cache.release(stage_key(files))
    assert cache.clear() == 0


def test_a_file_is_hashed_as_it_comes_and_from_the_disk_where_another_process_began(
    cache: StageCache, tmp_path: Path
) -> None:
    (one,) = ONE
    cache.request(stage_key(ONE), ONE)
    cache.write(one, 0, A[:300])
    cache.close()
    part = next((tmp_path / "cache" / "files").iterdir())
    part.write_bytes(B[:300])  # as a power cut may leave it
    cache = StageCache(tmp_path / "cache", CAP_BYTES)
    with pytest.raises(MissingFileError, match="arrived damaged"):
        cache.write(one, 300, A[300:])
    assert cache.write(one, 0, A) == 1000
    cache.close()


def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(source))

    monkeypatch.setattr(os, "link", refuse)


def test_without_hard_links_files_are_copied_and_the_copies_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch)
    cache = StageCache(tmp_path / "cache", 3 * CAP_BYTES)
    stages = [(file(f"{number}.ort", data), data) for number, data in enumerate((A, B, C, A + B, B + C))]
    for one, data in stages:
        place = keep(cache, (one,), data, release=False)
        assert (place / one.name).read_bytes() == data
        assert cache.used_bytes() >= 2 * one.bytes
        cache.release(stage_key((one,)))
        there = sum(each.stat().st_size for each in (tmp_path / "cache").rglob("*") if each.is_file())
        assert there == cache.used_bytes() <= 3 * CAP_BYTES
        assert not (place / one.name).exists(), "copies are there as long as they are used"
    large = A + B + C + A
    with pytest.raises(OutputError, match="lacks 3000 bytes"):  # with its copies
        cache.request(stage_key((file("large.ort", large),)), (file("large.ort", large),))
    cache.close()


def test_a_copy_that_was_cut_short_is_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_links(monkeypatch)
    cache = StageCache(tmp_path / "cache", 3 * CAP_BYTES)

    def cut_short(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as short, pytest.raises(OutputError, match="No space left"):
        short.setattr(pieces, "copy_file", cut_short)
        keep(cache, ONE, A)
    assert (cache.place(stage_key(ONE), ONE) / ONE[0].name).read_bytes() == A
    cache.close()
