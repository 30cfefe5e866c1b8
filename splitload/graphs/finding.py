"""Where long runs of bytes lie in a large file: what `bytes.find` returns, without reading up to there.

Every run of `_STEP + 7` bytes covers a word of eight bytes that begins at a multiple of `_STEP`. These words are sorted
once; a run is then only compared where one of its first words is among them.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

_STEP = 512
_WORD_BYTES = 8
_MOST_PLACES = 10_000  # of runs that repeat themselves, such as zeros, and are read up to instead


class ByteFinder:
    """Finds bytes in a file that nobody changes.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size
        self._places = np.arange(0, max(0, self._size - _WORD_BYTES + 1), _STEP)
        self._words = np.empty(0, np.uint64)
        if self._places.size:
            content = np.memmap(path, np.uint8, "r")
            words = content[self._places[:, None] + np.arange(_WORD_BYTES)].view(np.uint64).ravel()
            order = np.argsort(words, kind="stable")
            self._words, self._places = words[order], self._places[order]

    def find(self, data: bytes, start: int = 0, end: int | None = None) -> int:
        """Return the first place of `data` that lies in `[start, end)` as a whole, or -1."""
        if len(data) > self._size:
            return -1
        end = self._size if end is None else min(end, self._size)
        places = self._possible(data)
        with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if places is None:
                return content.find(data, start, end)
            for place in places[(places >= start) & (places <= end - len(data))].tolist():
                if content[place : place + _STEP] == data[:_STEP] and content[place : place + len(data)] == data:
                    return int(place)
        return -1

    def _possible(self, data: bytes) -> np.ndarray | None:
        """Return in order all places where `data` may lie; None where a plain search is the better one."""
        if len(data) < _STEP + _WORD_BYTES - 1:  # it may cover no word
            return None
        first = np.frombuffer(data, np.uint8, _STEP + _WORD_BYTES - 1)
        words = np.lib.stride_tricks.sliding_window_view(first, _WORD_BYTES).copy().view(np.uint64).ravel()
        begin, end = (np.searchsorted(self._words, words, side) for side in ("left", "right"))
        if (end - begin).sum() > _MOST_PLACES:
            return None
        rows = np.flatnonzero(end > begin).tolist()
        found = [self._places[begin[row] : end[row]] - row for row in rows]
        return np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)
