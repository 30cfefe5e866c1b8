"""Files copied in large pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitload.base.pieces import PIECE_BYTES, copy_file


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, 2 * PIECE_BYTES + 3])
def test_a_copy_holds_what_the_file_holds_and_nothing_of_before(tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    source.write_bytes(content)
    target.write_bytes(b"before" * 10)
    copy_file(source, target)
    assert target.read_bytes() == content
    assert source.read_bytes() == content


def test_what_cannot_be_read_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        copy_file(tmp_path / "nothing", tmp_path / "target")
    assert not (tmp_path / "target").exists()
