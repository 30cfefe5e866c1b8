"""Files cut where their content says so: a weight that lies in two files is cut alike in both, and sent once.

Stages of different plans hold the same weights in other orders. Weights begin at multiples of 64 bytes; a cut is made
before such a line if a fingerprint of it begins with zeros: that depends on nothing before it.
Source: content-defined chunking (Muthitacharoen, Chen and Mazières, "A low-bandwidth network file system", SOSP 2001).
Differs: the fingerprint is of aligned lines, not of a window that moves by bytes, and is computed by numpy.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

LINE_BYTES = 64
LEAST_BYTES, MOST_BYTES = 1 << 12, 1 << 20  # of a chunk; the last one may have less
_ZEROS = 10  # of a fingerprint where a cut is made: every 64 KiB on average
_AT_ONCE = 1 << 23  # bytes whose fingerprints are in memory together
# odd numbers without a pattern: the golden ratio's binary digits, multiplied by themselves
_FACTORS = np.array([pow(0x9E3779B97F4A7C15, power, 1 << 64) | 1 for power in range(1, 9)], np.uint64)


def chunks_of(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield the SHA-256, the first byte and the length of each chunk of a file, in order.

    Raises:
        OSError: If it cannot be read.
    """
    size = path.stat().st_size
    if size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
        start = 0
        for cut in _cuts(data, size):
            if cut - start < LEAST_BYTES and cut < size:
                continue
            while start < cut:
                end = min(start + MOST_BYTES, cut)
                yield hashlib.sha256(data[start:end]).hexdigest(), start, end - start
                start = end


def _cuts(data: mmap.mmap, size: int) -> Iterator[int]:
    """Yield where chunks end."""
    mask = np.uint64(((1 << _ZEROS) - 1) << (64 - _ZEROS))
    for first in range(0, size - LINE_BYTES + 1, _AT_ONCE):
        count = min(_AT_ONCE, size - first) // LINE_BYTES
        lines = np.frombuffer(data[first : first + count * LINE_BYTES], np.uint64).reshape(count, -1)
        marks = (lines ^ (lines >> np.uint64(31))) @ _FACTORS
        marks ^= marks >> np.uint64(29)
        marks *= _FACTORS[0]
        for place in np.flatnonzero((marks & mask) == 0).tolist():
            if first + place:
                yield first + place * LINE_BYTES
    yield size
