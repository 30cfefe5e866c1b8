"""Where the tensors of a stage come from: mapped from its file, or copied to a GPU through pinned memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, cast

import torch

from splitload.base.record import Record
from splitload.torch.format import ALIGNMENT, TensorEntry, TorchStage
from splitload.torch.staging import Backend, Staging

_POPULATE_READ = 22  # MADV_POPULATE_READ
Lane = Callable[[int], "Arrival"]


class Arrival(Record):
    """A stage that has been loaded, as far as the processor is concerned.

    Attributes:
        tensors: One for each entry of the stage.
        before_use: Called on a thread that is about to use them, each time until `settle` has returned.
        settle: Returns when they may be used without that.
    """

    tensors: Sequence[torch.Tensor]
    before_use: Callable[[], None]
    settle: Callable[[], None]


class TensorSource(Protocol):
    """Gives the tensors of stages."""

    def lane(self) -> Lane:
        """Return a call that loads the stage of a number, for one thread at a time."""


class Mapped:
    """Maps the files of stages: nothing is copied, and pages are shared with whoever maps the same file.

    Tensors may be written to; what is written stays in this process.

    Args:
        folder: The bundle.
        stages: Its stages.
        cached: Whether the system holds the files: then the thread that loads a stage also enters its pages, which
            otherwise interrupts inference some hundred times a stage.
    """

    def __init__(self, folder: Path, stages: Sequence[TorchStage], *, cached: bool) -> None:
        self._folder = folder
        self._stages = stages
        self._cached = cached

    def lane(self) -> Lane:
        """Return the call that maps a stage."""
        return self._map

    def _map(self, index: int) -> Arrival:
        stage = self._stages[index]
        path = str(self._folder / stage.file.name)
        storage = cast(torch.UntypedStorage, torch.UntypedStorage.from_file(path, False, stage.file.bytes))
        if self._cached:
            _enter_pages(storage)
        return Arrival([tensor_in(storage, entry, 0) for entry in stage.tensors], _nothing, _nothing)


class Copied:
    """Copies the files of stages to a device, several at a time, each thread through two pinned buffers of its own.

    Memory for all stages is taken here, by the thread that asks for the load and in its stream: it is the caller's like
    that of any tensor, and taking it does not wait for inference.

    Args:
        folder: The bundle.
        stages: Its stages.
        backend: The device.
        stopped: Whether nobody wants the rest any more.
    """

    def __init__(
        self, folder: Path, stages: Sequence[TorchStage], backend: Backend, stopped: Callable[[], bool]
    ) -> None:
        self._folder = folder
        self._stages = stages
        self._backend = backend
        self._stopped = stopped
        starts = [min(entry.offset for entry in stage.tensors) // ALIGNMENT * ALIGNMENT for stage in stages]
        with torch.inference_mode(False):  # it is written to on threads where that mode is off
            self._targets = [
                (start, backend.memory(stage.file.bytes - start)) for start, stage in zip(starts, stages, strict=True)
            ]
        backend.begin()

    def lane(self) -> Lane:
        """Return a call that copies stages through buffers of its own."""
        staging: list[Staging] = []

        def copy(index: int) -> Arrival:
            if not staging:  # on the thread that loads: pinning takes milliseconds
                staging.append(Staging(self._backend))
            stage, (start, target) = self._stages[index], self._targets[index]
            mark = staging[0].copy(self._folder / stage.file.name, start, target, self._stopped)
            storage = target.untyped_storage()
            return Arrival([tensor_in(storage, entry, start) for entry in stage.tensors], mark.before_use, mark.wait)

        return copy


def _enter_pages(storage: torch.UntypedStorage) -> None:
    """Have the system enter all pages of a mapped file at once, where it can (Linux from 5.14 on)."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    madvise(storage.data_ptr(), storage.nbytes(), _POPULATE_READ)  # what it cannot do, inference does page by page


def tensor_in(storage: torch.UntypedStorage, entry: TensorEntry, start: int) -> torch.Tensor:
    """Return a tensor whose bytes lie in a storage; it is no view, so that writing to it concerns no other tensor.

    Args:
        storage: Bytes of the file.
        entry: Which tensor.
        start: Where in the file the storage begins.
    """
    made = torch.empty(0, dtype=entry.torch_dtype, device=storage.device)
    strides = [math.prod(entry.shape[dimension + 1 :]) for dimension in range(len(entry.shape))]
    with torch.no_grad():
        return made.set_(storage, (entry.offset - start) // made.itemsize, entry.shape, strides)


def _nothing() -> None:
    """What there is to wait for where nothing is under way."""
