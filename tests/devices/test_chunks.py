"""Files cut where their content says so: what two files share is cut alike in both."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from splitload.devices.chunks import LEAST_BYTES, MOST_BYTES, chunks_of


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, LEAST_BYTES, 300_001, (9 << 20) + 13])
def test_chunks_are_the_file(tmp_path: Path, size: int) -> None:
    data = noise(1, size)
    (tmp_path / "x").write_bytes(data)
    there = 0
    found = list(chunks_of(tmp_path / "x"))
    for sha256, first, length in found:
        assert (first, sha256) == (there, hashlib.sha256(data[first : first + length]).hexdigest())
        assert length <= MOST_BYTES
        there += length
    assert there == size
    assert all(length >= LEAST_BYTES for _, _, length in found[:-1])


def test_weights_that_moved_are_cut_alike(tmp_path: Path) -> None:
    shared = noise(2, 4 << 20)
    (tmp_path / "a").write_bytes(noise(3, 64 * 1000) + shared)
    (tmp_path / "b").write_bytes(shared + noise(4, 64 * 777))
    a, b = ({sha256: length for sha256, _, length in chunks_of(tmp_path / name)} for name in "ab")
    assert sum(a[each] for each in a.keys() & b.keys()) > 0.9 * len(shared)


def test_a_file_without_variety_is_cut_too(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(5 << 20))
    assert {length for _, _, length in chunks_of(tmp_path / "zeros")} <= {LEAST_BYTES, MOST_BYTES}
