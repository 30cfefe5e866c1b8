"""Sizes: one way to read them, and one line for whatever is none."""

from __future__ import annotations

import pytest

from splitload.base.sizes import megabytes, read_bytes, read_residency


@pytest.mark.parametrize(
    ("word", "size_bytes"),
    [
        ("48MB", 48_000_000), ("48MiB", 48 << 20), ("48 mb", 48_000_000), ("1.5GB", 1_500_000_000), ("7", 7),
        ("7B", 7), (".5kB", 500), ("28.3MB", 28_300_000), ("2GiB", 2 << 30), ("1.KiB", 1024),
    ],
)  # fmt: skip
def test_a_size(word: str, size_bytes: int) -> None:
    assert read_bytes(word) == read_residency(word) == size_bytes


@pytest.mark.parametrize("word", ["", "MB", ".", "48M", "-1MB", "1e3", "nan", "0", "0.1B", "1.2.3MB", "4_8", "9" * 30])
def test_a_word_that_is_no_size(word: str) -> None:
    with pytest.raises(ValueError, match="such as 48MB, 48MiB or 48000000, not"):
        read_bytes(word)
    with pytest.raises(ValueError, match="all, stage or a size such as 48MB, not"):
        read_residency(word)


def test_what_is_no_size_in_a_residency() -> None:
    assert (read_residency("all"), read_residency("stage")) == (None, "stage")
    assert megabytes(28_340_000) == "28.3 MB"
