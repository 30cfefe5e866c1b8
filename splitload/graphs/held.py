"""Weights that several stages of a cut read: the file of the first one holds them, the others read them there.

The system maps the same pages of that file into every stage, so that a weight is once on disk and once in memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from splitload.graphs.ortfile import weight_places
from splitload.graphs.proto import is_external, point, tensor_bytes

_REPEATED = 0.001  # of all weights: a stage rather repeats so much, as .ort files load sooner and can share nothing


class Held(NamedTuple):
    """Where the bytes of a weight lie: the file's name in the folder, the first byte, and how many."""

    file: str
    offset: int
    length: int


class HeldWeights:
    """Finds the weights of one model in the stages written to a folder so far.

    Args:
        total_bytes: Bytes of all weights of the model.
    """

    def __init__(self, total_bytes: int) -> None:
        self._places: dict[str, Held] = {}
        self._unread: dict[Path, frozenset[str]] = {}  # .ort files, and the weights to be looked up in them
        self._repeated_bytes = _REPEATED * total_bytes

    def add(self, places: Mapping[str, Held]) -> None:
        """Note where weights lie that no stage held before."""
        self._places = {**places, **self._places}

    def add_ort(self, file: Path, names: Iterable[str]) -> None:
        """Note which weights an .ort file holds; it is only read if one of them is asked for."""
        self._unread[file] = frozenset(names)

    def share(self, tensors: Iterable[Any], *, always: bool) -> tuple[str, ...]:
        """Point tensors that an earlier stage holds at its file.

        Args:
            tensors: Those that earlier stages read as well.
            always: Whether also few bytes are to be shared.

        Returns:
            The files; none where nothing is held, or so little that it is better repeated.
        """
        found = [(tensor, place) for tensor in tensors if is_external(tensor) and (place := self._find(tensor.name))]
        if not always and sum(tensor_bytes(tensor) for tensor, _ in found) <= self._repeated_bytes:
            return ()
        for tensor, place in found:
            point(tensor, *place)
        return tuple(dict.fromkeys(place.file for _, place in found))

    def _find(self, name: str) -> Held | None:
        for path in [path for path, names in self._unread.items() if name in names]:
            del self._unread[path]
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self.add({each: Held(path.name, *place) for each, place in weight_places(data).items()})
        return self._places.get(name)
