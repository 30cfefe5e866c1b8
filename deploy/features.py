"""Features: what the last stage reads of samples, worked out by the frozen stages, each once, and kept in files.

The first samples that are asked for are worked out alone, so that training begins after one batch; all others with the
next. The frozen stages are loaded for that and let go of: they are never in memory beside a training step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.machine import return_memory
from splitload.deploy.frozen import FrozenStages
from splitload.deploy.samples import Samples
from splitload.runtime.loader import ParallelLoader

CALLERS = 2  # samples at a time, where the model takes one: while one run waits for its last thread the other goes on
Array = np.ndarray[Any, Any]


class Features:
    """The features of sets of samples.

    Args:
        frozen: The frozen stages.
        names: Which the last stage reads.
        sets: The sets of samples.
        folder: Where they are kept.
        batch_size: Samples of a run, where the model takes many at once.
        on_features: Called as `on_features(samples, total)` after each run.
    """

    def __init__(
        self,
        frozen: FrozenStages,
        names: Sequence[str],
        sets: Sequence[Samples],
        folder: Path,
        *,
        batch_size: int,
        on_features: Callable[[int, int], None] | None = None,
    ) -> None:
        self._frozen = frozen
        self._names = names
        self._sets = sets
        self._folder = folder
        self._batch_size = batch_size
        self._on_features = on_features
        self._known = [np.zeros(samples.count, dtype=bool) for samples in sets]
        self._kept: list[dict[str, Array]] = [{} for _ in sets]

    def of(self, place: int, rows: Array) -> dict[str, Array]:
        """Return the features of some samples by name, each of shape `(len(rows), …)`.

        Args:
            place: Which set they are of.
            rows: Their numbers in it, in ascending order.

        Raises:
            BundleError: If the bundle is damaged.
            StageError: If a frozen stage cannot be loaded.
        """
        if not self._known[place][rows].all():
            first = not any(known.any() for known in self._known)
            everything = {number: np.arange(len(known)) for number, known in enumerate(self._known)}
            self._work_out({place: rows} if first else everything)
        return {name: self._kept[place][name][rows] for name in self._names}

    def _work_out(self, wanted: Mapping[int, Array]) -> None:
        """Run the frozen stages on samples by their set; not on those that are known."""
        return_memory()  # what a training step has freed
        with self._frozen.open() as stages:
            for place, rows in wanted.items():
                missing = rows[~self._known[place][rows]]
                many = self._sets[place].takes_many
                step = self._batch_size if many else 1
                parts = [missing[start : start + step] for start in range(0, len(missing), step)]
                self._run(stages, place, parts, 1 if many else CALLERS)

    def _run(self, stages: ParallelLoader, place: int, parts: Sequence[Array], callers: int) -> None:
        """Run the frozen stages on parts of a set, so many at a time, and keep what they give."""
        from concurrent.futures import ThreadPoolExecutor

        inputs = self._sets[place].inputs
        outputs = [spec.name for spec in stages.manifest.outputs]

        def run(rows: Array) -> list[Any]:
            return stages.run(outputs, {name: value[rows] for name, value in inputs.items()})

        pool = ThreadPoolExecutor(callers)
        try:
            for rows, made in zip(parts, pool.map(run, parts), strict=True):
                self._keep(place, rows, dict(zip(outputs, made, strict=True)))
        finally:  # after an error or an interrupt nobody wants what has not begun
            pool.shutdown(cancel_futures=True)

    def _keep(self, place: int, rows: Array, made: Mapping[str, Array]) -> None:
        samples, kept = self._sets[place], self._kept[place]
        for number, (name, value) in enumerate(made.items()):
            if name not in kept:
                shape = (samples.count, *value.shape[1:])
                kept[name] = _in_file(self._folder / f"{place}-{number}", value.dtype, shape)
            kept[name][rows] = value
        kept.update({name: samples.inputs[name] for name in self._names if name not in kept})
        self._known[place][rows] = True
        if self._on_features is not None:
            self._on_features(sum(int(known.sum()) for known in self._known), sum(map(len, self._known)))


def _in_file(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Return an array that lies in a new file, whose room is taken now: a full disk found later ends the process.

    Raises:
        OSError: If there is no room for it.
    """
    size = max(1, dtype.itemsize * math.prod(shape))
    with path.open("xb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    return np.memmap(path, dtype, "r+", shape=shape)
