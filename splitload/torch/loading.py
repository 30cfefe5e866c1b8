"""Loads a bundle into a module on the meta device, stage by stage on threads, while the module already runs."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from splitload.base.errors import ModelError, StageError, UsageError
from splitload.base.machine import available_threads
from splitload.base.record import Record
from splitload.bundle.read import Verify
from splitload.runtime import reading
from splitload.runtime.ordered import OrderedLoading, enlist
from splitload.runtime.pool import SHARED, started
from splitload.torch.format import TensorEntry, TorchManifest, read_manifest
from splitload.torch.reads import Watch
from splitload.torch.sources import Arrival, Copied, Mapped, TensorSource
from splitload.torch.staging import Backend
from splitload.torch.tensors import TensorPlace, check_loadable, named, places

if TYPE_CHECKING:
    from splitload.runtime.ordered import Pool

GPU_THREADS = 4  # one fills pinned memory with 5 GB/s or more
_loadings: weakref.WeakKeyDictionary[nn.Module, Loading] = weakref.WeakKeyDictionary()


def cuda(device: torch.device) -> Backend:
    """Return a GPU, see `splitload.torch.cuda`."""
    from splitload.torch.cuda import Cuda

    return Cuda(device)


class TorchParts(Record):
    """What a loading of a module does not do itself; whoever wants to see or replace it hands in something else.

    Attributes:
        pool: Runs the loads, see `LoadingPool`.
        is_cached: Tells whether a file is in memory, see `reading.is_cached`.
        fetch: Reads files in the order of their use, see `reading.fetch`.
        mapped: Gives the tensors of stages on the processor, see `Mapped`.
        backend: Returns what copies tensors to a device.
    """

    pool: Pool = SHARED
    is_cached: Callable[..., bool] = reading.is_cached
    fetch: Callable[..., object] = reading.fetch
    mapped: Callable[..., TensorSource] = Mapped
    backend: Callable[[torch.device], Backend] = cuda


def load(
    module: nn.Module,
    bundle: str | Path,
    *,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    verify: Verify = "sizes",
) -> nn.Module:
    """Fill a module with the tensors of a bundle, in the background; it may be called at once.

    Whoever reads a tensor waits for its stage, and for that stage only: a forward pass begins with the first and goes
    on while later ones are loaded. So do `state_dict()`, `to()`, `parameters()` and deep copies, which wait for what
    they read. Any number of threads may use the module meanwhile. What reads tensors past their module (torch.compile,
    tracing) must come after `wait(module)`. Nothing of splitload is left in the module then. After a failure every call
    that needs what is missing raises; build the module anew to load it again.

    On the processor tensors are mapped from the files: nothing is copied, processes that load the same bundle share the
    memory, and files that the system does not hold are read ahead in the order of their use. On a GPU they are copied
    through pinned memory on streams of their own.

    Args:
        module: The module, of the architecture that was saved; built on the meta device (`with torch.device("meta"):
            ...`), so that building it takes no memory or time. Its training flag stays as it is: call `eval()`.
        bundle: The folder that `save` wrote.
        device: "cpu", "cuda" or "cuda:N".
        threads: How many stages load at a time, at least 1; None: as many as the process has processors, on a GPU no
            more than 4, so that stages still come one after the other.
        verify: What is checked first: "none", "sizes" or "hashes" of the files.

    Returns:
        The same module.

    Raises:
        BundleError: If the bundle is incomplete or damaged.
        ModelError: If the module and the bundle do not fit: a tensor that only one of them has, or of another shape or
            type; named.
        UsageError: If `threads` or `device` cannot be meant, or the module is being loaded already.
    """
    return load_with(TorchParts(), module, bundle, device=device, threads=threads, verify=verify)


def load_with(
    parts: TorchParts,
    module: nn.Module,
    bundle: str | Path,
    *,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    verify: Verify = "sizes",
) -> nn.Module:
    """Do what `load` does, with other parts."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise UsageError(f"threads must be a whole number of at least 1, it is {threads!r}")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        place = torch.device("meta")
    if place.type not in ("cpu", "cuda"):
        raise UsageError(f"device must be 'cpu', 'cuda' or 'cuda:N', it is '{device}'")
    if module in _loadings and not _loadings[module].is_over():
        raise UsageError("the module is being loaded already; splitload.torch.wait(module) waits until it is there")
    folder = Path(bundle).resolve()
    manifest = read_manifest(folder, verify)
    check_loadable(module)
    slots = _fitting(module, manifest)
    most = threads or (available_threads() if place.type == "cpu" else min(available_threads(), GPU_THREADS))
    loading = Loading(folder, manifest, slots, place, most, parts)
    _loadings[module] = loading
    loading.start()
    return module


def wait(module: nn.Module, timeout: float | None = None) -> bool:
    """Wait until every tensor of a module that `load` returned is there.

    Args:
        module: The module.
        timeout: The most seconds to wait; None: no limit.

    Returns:
        Whether it is loaded.

    Raises:
        StageError: If a stage could not be loaded.
        UsageError: If `load` never returned this module.
    """
    loading = _loadings.get(module)
    if loading is None:
        raise UsageError("this module was not loaded by splitload.torch.load")
    return loading.wait(timeout)


class Slot:
    """A tensor of the bundle, and the places in the module where it goes."""

    __slots__ = ("entry", "places")

    def __init__(self, entry: TensorEntry, where: Sequence[TensorPlace]) -> None:
        self.entry = entry
        self.places = where

    def put(self, tensor: torch.Tensor) -> None:
        """Put the tensor where nobody has put another one meanwhile; it is one object in all places."""
        first = self.places[0].tensor
        value = nn.Parameter(tensor, requires_grad=first.requires_grad) if self.entry.parameter else tensor
        for place in self.places:
            held = place.module._parameters if self.entry.parameter else place.module._buffers
            if held.get(place.key) is place.tensor:
                setattr(place.module, place.key, value)


def _fitting(module: nn.Module, manifest: TorchManifest) -> list[list[Slot]]:
    """Return where the tensors of each stage go.

    Raises:
        ModelError: With the first tensor that does not fit.
    """
    free = {place.name: place for place in places(module)}
    taken: dict[int, str] = {}  # tensors of the module, and the first name in the bundle
    stages = []
    for stage in manifest.stages:
        slots = []
        for entry in stage.tensors:
            where = []
            for name in entry.names:
                place = free.pop(name, None)
                if place is None:
                    raise ModelError(f"the bundle holds '{name}', which the module has not; build what was saved")
                _check_fits(place, entry)
                if taken.setdefault(id(place.tensor), entry.names[0]) != entry.names[0]:
                    raise ModelError(
                        f"'{taken[id(place.tensor)]}' and '{name}' are one tensor in the module and two in the bundle; "
                        "build what was saved"
                    )
                where.append(place)
            slots.append(Slot(entry, where))
        stages.append(slots)
    if free:
        place = next(iter(free.values()))
        raise ModelError(
            f"the module has '{place.name}', which the bundle does not hold ({len(free)} such); build what was saved"
        )
    return stages


def _check_fits(place: TensorPlace, entry: TensorEntry) -> None:
    is_parameter = place.key in place.module._parameters
    for what, has, holds in (
        ("shape", tuple(place.tensor.shape), entry.shape),
        ("type", place.tensor.dtype, entry.torch_dtype),
        ("kind", "a parameter" if is_parameter else "a buffer", "a parameter" if entry.parameter else "a buffer"),
    ):
        if has != holds:
            cure = f"; give it that type: module.to({holds})" if what == "type" else ""
            raise ModelError(
                f"'{place.name}' of {named(place.owner, place.module)} has {what} {has}, in the bundle {holds}{cure}"
            )


class Loading:
    """A module's stages on their way.

    Args:
        folder: The bundle.
        manifest: What it says.
        slots: Where the tensors of each stage go.
        device: Where they will be.
        threads: How many stages load at a time.
        parts: What else is needed.
    """

    def __init__(
        self,
        folder: Path,
        manifest: TorchManifest,
        slots: list[list[Slot]],
        device: torch.device,
        threads: int,
        parts: TorchParts,
    ) -> None:
        self._folder = folder
        self._slots = slots
        self._threads = min(threads, len(slots))
        self._fetch = parts.fetch
        self._loading: OrderedLoading = OrderedLoading(folder, len(slots), parts.pool, given_up=[self._forget])
        self._settled = self._loading.latch()
        self._num_unsettled = len(slots)
        self._watched: list[tuple[Watch, set[int]]] = []
        self._to_fetch: list[tuple[Path, reading.ReadOrder]] = []
        if device.type == "cpu":
            files: list[tuple[Path, reading.ReadOrder]] = [
                (folder / file.name, (1, file.bytes)) for file in manifest.files()
            ]
            cached = all(parts.is_cached(*file) for file in files)
            source = parts.mapped(folder, manifest.stages, cached=cached)
            self._to_fetch = [] if cached else files
        else:
            source = Copied(folder, manifest.stages, parts.backend(device), self.is_over)
        self._lanes = [source.lane() for _ in range(self._threads)]

    def is_over(self) -> bool:
        """Whether nothing more will be loaded, as all is there or a stage failed."""
        return self._loading.is_over() or self._settled.is_set()

    def _watch(self) -> list[tuple[Watch, set[int]]]:
        """Watch each module that holds tensors; return its watch and the stages that it waits for."""
        stage_of: dict[int, dict[str, int]] = {}
        modules: dict[int, nn.Module] = {}
        for index, slots in enumerate(self._slots):
            for place in (place for slot in slots for place in slot.places):
                modules[id(place.module)] = place.module
                stage_of.setdefault(id(place.module), {})[place.key] = index
        return [
            (Watch(module, partial(self._before_read, stage_of[number])), set(stage_of[number].values()))
            for number, module in modules.items()
        ]

    def _before_read(self, stage_of: Mapping[str, int], name: str) -> None:
        """Wait until a tensor is there; called by whoever reads it."""
        index, loading = stage_of.get(name), self._loading
        if index is None or loading.is_inside():  # who puts it there may look at it
            return
        arrival = loading.take(index)
        if arrival is None:
            loading.check()
        else:
            arrival.before_use()

    def start(self) -> None:
        """Begin to load.

        Raises:
            StageError: If the system has no thread left.
        """
        enlist(self)
        try:
            self._watched = self._watch()
            if self._to_fetch:
                started(threading.Thread(target=self._fetch, args=(self._to_fetch, self.is_over), daemon=True))
            self._loading.start(self._threads, self._load, self._settle)
        except BaseException:  # an interrupt: nobody will load what the module waits for
            self._loading.close()
            raise

    def wait(self, timeout: float | None) -> bool:
        """Wait until all is there; return whether it is."""
        done = self._settled.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        self._loading.check()
        return done

    def _let_go(self) -> None:
        """Load no more, and return when no thread is inside torch for it: that may abort a process that exits."""
        if not self._settled.is_set():
            exits = StageError(f"'{self._folder}' was not loaded to the end: the interpreter exits")
            self._loading.stop(exits)

    def _inherit(self) -> None:
        """Give up, in a forked child: the threads that load stayed with the parent."""
        if self._settled.is_set():
            return
        loaded, self._loading = self._loading.values, self._loading.heir()
        self._loading.values, self._settled = loaded, self._loading.latch()
        self._loading.give_up(
            StageError(f"the process was forked while '{self._folder}' was loaded; load it in the child")
        )

    def _load(self, index: int, lane: int) -> Arrival:
        """Load a stage, and put its tensors into the module."""
        arrival = self._lanes[lane](index)
        for slot, tensor in zip(self._slots[index], arrival.tensors, strict=False):  # no slots, if it was given up
            slot.put(tensor)
        return arrival._replace(tensors=())  # they are the module's

    def _settle(self, index: int, loaded: int) -> None:
        """Leave no trace of a stage that is loaded in the module, once its tensors may be used like any other."""
        arrival = self._loading.take(index)
        if arrival is not None:
            arrival.settle()
        with self._loading.lock:
            for watch, waits_for in self._watched:
                if index in waits_for:
                    waits_for.remove(index)
                    if not waits_for:
                        watch.end()
            self._slots[index] = []
            self._num_unsettled -= 1
            if not self._num_unsettled:
                self._forget()
                self._settled.set()

    def _forget(self) -> None:
        """Hold nothing of the module or the files any more; the loading's lock is held."""
        self._slots = [[] for _ in self._slots]
        self._watched = []
        self._lanes = []
