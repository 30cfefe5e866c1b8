"""Bytes are found where `bytes.find` finds them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from splitload.graphs.finding import ByteFinder

LENGTHS = (1, 8, 518, 519, 520, 1024, 3000)  # about the one from which a run surely covers a word of the index


@pytest.mark.parametrize("size", [0, 3, 7, 8, 9, 600, 5000, 70_000])
def test_finds_what_bytes_find_does(size: int, tmp_path: Path) -> None:
    draw = random.Random(size)  # noqa: S311 - of test data
    content = bytearray(draw.randbytes(size))
    content[size // 3 : size // 3 + 2000] = content[: len(content[size // 3 : size // 3 + 2000])]  # found twice
    path = tmp_path / "file"
    path.write_bytes(content)
    finder = ByteFinder(path)
    for _ in range(100):
        place, length = draw.randrange(size + 1), draw.choice(LENGTHS)
        data = bytes(content[place : place + length]) + draw.choice([b"", b"", b"x"])
        start, end = draw.choice([0, place, place + 1]), draw.choice([None, place + length, size + 5])
        if data:
            assert finder.find(data, start, end) == bytes(content).find(data, start, end)


def test_zeros_in_zeros_are_found_too(tmp_path: Path) -> None:
    content = b"".join([b"x" * 7, bytes(60_000), b"y" * 9, bytes(20_000)])
    path = tmp_path / "file"
    path.write_bytes(content)
    finder = ByteFinder(path)
    for length in (600, 20_000, 60_000, 60_001):
        for start in (0, 50_000, 60_010):
            assert finder.find(bytes(length), start) == content.find(bytes(length), start)
