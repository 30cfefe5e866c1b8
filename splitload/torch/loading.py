"""Loads a bundle into a module on the meta device, stage by stage on threads, while the module already runs."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from splitload.base.errors import ModelError, StageError, UsageError
from splitload.base.machine import available_threads
from splitload.bundle.read import Verify
from splitload.runtime.loader import submit
from splitload.runtime.pool import Latch, started
from splitload.runtime.session import fetch, is_cached
from splitload.torch.format import TensorEntry, TorchManifest, read_manifest
from splitload.torch.reads import Watch
from splitload.torch.sources import Copied, Lane, Mapped, Source
from splitload.torch.tensors import Place, check_loadable, named, places

GPU_THREADS = 4  # one fills pinned memory with 5 GB/s or more
_loadings: weakref.WeakKeyDictionary[nn.Module, Loading] = weakref.WeakKeyDictionary()
_alive: set[Loading] = set()  # those with stages to come


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
    loading = Loading(folder, manifest, slots, place, most)
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

    def __init__(self, entry: TensorEntry, where: Sequence[Place]) -> None:
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


def _check_fits(place: Place, entry: TensorEntry) -> None:
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
    """

    def __init__(
        self,
        folder: Path,
        manifest: TorchManifest,
        slots: list[list[Slot]],
        device: torch.device,
        threads: int,
    ) -> None:
        self._folder = folder
        self._slots = slots
        self._threads = min(threads, len(slots))
        self._lock = threading.Lock()
        self._latches = [Latch() for _ in slots]
        self._settled, self._left = Latch(), Latch()
        self._before_use: list[Callable[[], None]] = [lambda: None] * len(slots)
        self._arrived = [False] * len(slots)
        self._next = self._num_settled = 0
        self._error: StageError | None = None
        self._busy: set[int] = set()  # threads that load
        source: Source
        if device.type == "cpu":
            files = [(folder / file.name, (1, file.bytes)) for file in manifest.files()]
            cached = all(is_cached(*file) for file in files)
            source = Mapped(folder, manifest.stages, cached=cached)
            self._to_fetch = [] if cached else files
        else:
            from splitload.torch.cuda import Cuda

            source = Copied(folder, manifest.stages, Cuda(device), self.is_over)
            self._to_fetch = []
        self._lanes = [source.lane() for _ in range(self._threads)]
        self._watched = self._watch()

    def is_over(self) -> bool:
        """Whether nothing more will be loaded, as all is there or a stage failed."""
        return self._error is not None or self._settled.is_set()

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
        index = stage_of.get(name)
        if index is None or threading.get_ident() in self._busy:  # who puts it there may look at it
            return
        self._latches[index].wait()
        if not self._arrived[index]:
            self._raise_if_failed()
        self._before_use[index]()

    def start(self) -> None:
        """Begin to load.

        Raises:
            StageError: If the system has no thread left.
        """
        _alive.add(self)
        if self._to_fetch:
            started(threading.Thread(target=fetch, args=(self._to_fetch, self.is_over), daemon=True))
        begun = [submit(partial(self._load_next, lane), self._threads) for lane in self._lanes]
        if not any(begun):
            self._give_up(StageError(f"cannot load '{self._folder}': the system has no thread left to load it with"))
            self._raise_if_failed()

    def wait(self, timeout: float | None) -> bool:
        """Wait until all is there; return whether it is."""
        done = self._settled.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        self._raise_if_failed()
        return done

    def stop(self) -> None:
        """Load no more, and return when no thread is inside torch for it."""
        self._give_up(StageError(f"'{self._folder}' was not loaded to the end: the interpreter exits"))
        with self._lock:
            wait = bool(self._busy)
        if wait:
            self._left.wait()

    def orphan(self) -> None:
        """Give up, in a forked child: the threads that load stayed with the parent, perhaps with locks."""
        self._lock = threading.Lock()
        self._latches = [Latch() for _ in self._latches]
        self._settled = Latch()
        self._busy = set()
        self._give_up(StageError(f"the process was forked while '{self._folder}' was loaded; load it in the child"))

    def _load_next(self, lane: Lane) -> None:
        """Load the next stage, then make room for other models; one turn on a thread of the pool."""
        with self._lock:
            index = self._next
            if self.is_over() or index >= len(self._slots):
                return
            self._next = index + 1
            self._busy.add(threading.get_ident())
        try:
            self._load(index, lane)
        except BaseException as error:
            text = " ".join(str(error).split())[:300] or type(error).__name__
            failure = StageError(f"stage {index + 1} of '{self._folder}' cannot be loaded: {text}")
            failure.__cause__ = error
            self._give_up(failure)
            if not isinstance(error, Exception):
                raise
        finally:
            with self._lock:
                self._busy.discard(threading.get_ident())
                if self.is_over() and not self._busy:
                    self._left.set()
        if not self.is_over():
            submit(partial(self._load_next, lane), self._threads)

    def _load(self, index: int, lane: Lane) -> None:
        """Load a stage, wake those who wait for it, and leave no trace of it in the module."""
        arrival = lane(index)
        for slot, tensor in zip(self._slots[index], arrival.tensors, strict=True):
            slot.put(tensor)
        with self._lock:
            if self._error is not None:
                return
            self._before_use[index] = arrival.before_use
            self._arrived[index] = True
            self._latches[index].set()
        arrival.settle()
        with self._lock:
            for watch, waits_for in self._watched:
                if index in waits_for:
                    waits_for.remove(index)
                    if not waits_for:
                        watch.end()
            self._slots[index] = []
            self._num_settled += 1
            if self._num_settled == len(self._slots):
                self._let_go()
                self._settled.set()

    def _give_up(self, error: StageError) -> None:
        """Keep the first error, and wake everyone who waits."""
        with self._lock:
            if self.is_over():
                return
            self._error = error
            self._slots = [[] for _ in self._slots]
            self._let_go()
            for latch in (*self._latches, self._settled):
                latch.set()

    def _let_go(self) -> None:
        """Hold nothing of the module or the files any more; the caller holds the lock."""
        _alive.discard(self)
        self._watched = []
        self._lanes = []

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise StageError(str(self._error)) from self._error.__cause__


@atexit.register
def _stop_all() -> None:
    """Let no thread be inside torch when the interpreter goes away: that may abort the process."""
    for loading in list(_alive):
        with contextlib.suppress(KeyboardInterrupt, SystemExit):  # the process ends as it is
            loading.stop()


def _orphan_all() -> None:
    """Have no forked child wait for threads that it has not."""
    for loading in list(_alive):
        loading.orphan()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_orphan_all)
