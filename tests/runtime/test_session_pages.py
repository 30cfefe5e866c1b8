"""SessionPages: only what a session has mapped itself is given back, and only while it is there."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from splitload.runtime.mapped import PAGE_BYTES
from splitload.runtime.session_pages import SessionPages

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says what is mapped where")


class Session:
    """Has mapped a file, and written into its first and last page: what is given back is the file's again."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.memory[0] = self.memory[-1] = 1

    @property
    def written(self) -> tuple[int, int]:
        return self.memory[0], self.memory[-1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "stage.ort").write_bytes(bytes(4 * PAGE_BYTES))
    return tmp_path / "stage.ort"


def test_another_session_on_the_same_file_keeps_its_pages(path: Path) -> None:
    other, pages = Session(path), SessionPages([str(path)])
    session = pages.open(lambda: Session(path))
    later = Session(path)
    pages.give_back(pages.spans)
    assert (session.written, other.written, later.written) == ((0, 0), (1, 1), (1, 1))


def test_a_part_is_given_back_by_itself(path: Path) -> None:
    pages = SessionPages([str(path)])
    session = pages.open(lambda: Session(path))
    before, behind = pages.split(2 * PAGE_BYTES + 5)
    assert [end - begin for begin, end in (*before, *behind)] == [2 * PAGE_BYTES] * 2
    pages.give_back(behind)
    assert session.written == (1, 0)


def test_a_file_that_was_moved_or_removed_is_given_back_all_the_same(path: Path, tmp_path: Path) -> None:
    pages = SessionPages([str(path)])
    session = pages.open(lambda: Session(path))
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / path.name)
    pages.give_back(pages.split(2 * PAGE_BYTES)[0])
    assert session.written == (0, 1)
    moved.unlink()
    pages.give_back(pages.spans)
    assert session.written == (0, 0)


def test_what_takes_the_place_of_a_session_keeps_its_pages(path: Path, tmp_path: Path) -> None:
    (tmp_path / "other.ort").write_bytes(bytes(4 * PAGE_BYTES))
    pages = SessionPages([str(path)])
    session = pages.open(lambda: Session(path))
    session.memory.close()
    next_ones = [Session(tmp_path / "other.ort") for _ in range(8)]  # one of them most likely at the same address
    pages.give_back(pages.spans)
    del session
    pages.give_back(pages.spans)
    assert {each.written for each in next_ones} == {(1, 1)}
