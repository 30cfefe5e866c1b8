"""Makes a native variant of a portable bundle in the background, with nothing but onnxruntime, for the next start.

After a first answer each portable stage is optimised for this processor and stored in onnxruntime's own format, at low
priority; the stages stay where they are cut. The new ones are run on the caller's inputs, and kept only if they answer
as the portable ones did: in the bundle where it may be written, else in the user's cache. There is no canary, as none
can be made without the package onnx: such a variant is for this very processor and version of the runtime. What
`splitload specialize` makes beside that, blocked matrix products, a plan measured here, and weights that all variants
share, it has not: it takes as much room as the model once more.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from splitload.base.cache import cache_folder
from splitload.base.errors import BundleError, OutputError
from splitload.base.machine import cpu_architecture
from splitload.base.pieces import copy_file
from splitload.base.regular import sha256_of
from splitload.base.scratch import scratch_folder
from splitload.base.sealed import seal
from splitload.bundle.manifest import FORMAT, MANIFEST, File, Manifest, StageEntry, Variant
from splitload.bundle.read import read_manifest
from splitload.bundle.replace import check_place, replacing
from splitload.bundle.tails import Tail, alone
from splitload.bundle.tails import names as tails_of
from splitload.bundle.validate import validate
from splitload.runtime.answers import TOLERANCE, relative_error
from splitload.runtime.feeds import as_array
from splitload.runtime.forks import making_session
from splitload.runtime.options import CallerOptions
from splitload.runtime.pool import Latch, started
from splitload.runtime.session import open_session, run_stage, to_python
from splitload.runtime.stock import path_option, python_module, stock_session, without_threads

MAX_GROWTH = 1.25  # over the portable stages' weights: what folding makes larger is not worth its loading
_HEAD_BYTES = 1 << 20  # what a stage's graph may take besides
_log = logging.getLogger("splitload")


def cached(manifest: Manifest, runtime: str) -> tuple[Path, Variant] | None:
    """Return the folder and the variant that an earlier run has left in the user's cache for this machine, if any."""
    place = _place(manifest, runtime)
    if place is None:
        return None
    try:
        (variant,) = read_manifest(place, "sizes").variants
    except (BundleError, ValueError):
        return None
    return place, variant


class Specializer:
    """Makes the native variant of one bundle, once.

    Attributes:
        done: Set when it is kept, or was given up; the logger "splitload" says which.

    Args:
        folder: The bundle.
        manifest: What it says.
        tail: Its personalized last stage, or None.
        caller: What the loader's sessions are made with.
        inside: Returns a block in which the loader may not be closed; entering it raises where that is.
    """

    def __init__(
        self,
        folder: str,
        manifest: Manifest,
        tail: Tail | None,
        caller: CallerOptions,
        inside: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.done = Latch()
        self._folder, self._manifest, self._tail = Path(folder), manifest, tail
        self._caller, self._inside = caller, inside
        self._begun = threading.Lock()

    def answered(self, feeds: Mapping[str, Any], names: Sequence[str], outputs: Sequence[Any]) -> None:
        """Begin, after the first answer; the caller's values are copied, as they may change."""
        if not self._begun.acquire(blocking=False):
            return

        def kept(value: Any) -> Any:
            return copy.deepcopy(as_array(to_python(ort, value)))

        try:
            ort = python_module("specialize='background'")
            given = {name: kept(value) for name, value in feeds.items()}
            expected = {name: kept(value) for name, value in zip(names, outputs, strict=True)}
        except Exception as error:  # no module, an OrtValue that is no tensor, or one of a type that numpy lacks
            self._give_up(error)
            return
        thread = threading.Thread(target=self._work, args=(given, expected), name="splitload-specialize", daemon=True)
        if not started(thread):
            self._give_up(OutputError("the system has no thread left to make it with"))

    def cancel(self) -> None:
        """Let nobody wait for what was not begun: there will be no first answer."""
        if self._begun.acquire(blocking=False):
            self.done.set()

    def _work(self, feeds: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        if sys.platform.startswith("linux"):
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            where = self._make(feeds, expected)
            _log.info("'%s' has a native variant for this machine in '%s'", self._folder, where)
        except Exception as error:  # onnxruntime has no common root for its errors
            self._give_up(error)
        finally:
            self.done.set()

    def _give_up(self, error: Exception) -> None:
        text = " ".join(str(error).split())[:300]
        _log.warning("'%s' gets no native variant in the background: %s", self._folder, text)
        self.done.set()

    def _make(self, feeds: Mapping[str, Any], expected: Mapping[str, Any]) -> Path:
        """Make the variant, check it, keep it, and return where."""
        import onnxruntime as ort

        portable = self._manifest.variants[-1]
        parent = _writable(self._folder) or _cache_parent()
        with scratch_folder(parent, ".native-") as made:
            stages = []
            for number, stage in enumerate(portable.stages):
                if stage.trainable:  # all variants end with one and the same tail
                    stages.append(stage)
                    for file in filter(None, (stage.graph, stage.weights)):
                        _link(self._folder / file.name, made / file.name)
                    continue
                with self._inside():
                    stages.append(_native_stage(self._folder, stage, made, number, self._caller.own_threads))
            native = portable._replace(
                kind="native", cpu=cpu_architecture(), runtime=ort.__version__, stages=tuple(stages)
            )
            size, most = _bytes(native), MAX_GROWTH * _bytes(portable) + _HEAD_BYTES * len(stages)
            if size > most:
                raise OutputError(f"it would take {size / 1e6:.1f} MB, {MAX_GROWTH} of the portable graph is the limit")
            with self._inside():
                self._check(made, native, feeds, expected)
            if parent == self._folder.parent:
                with contextlib.suppress(OutputError):  # the cache remains
                    _put_into_bundle(self._folder, portable, native, made)
                    return self._folder
            place = _place(self._manifest, ort.__version__)
            if place is None:
                raise OutputError("neither the bundle can be written nor is there a cache folder")
            everywhere = native._replace(cpu=None, runtime=None)  # the place says for what it is
            place.parent.mkdir(parents=True, exist_ok=True)
            _write(place, self._manifest._replace(variants=(everywhere,), training=None), made, _check_target)
            return place

    def _check(self, made: Path, native: Variant, feeds: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        """Raise unless the new stages answer as the old ones did."""
        import onnxruntime as ort

        values: dict[str, Any] = dict(feeds)
        for stage in native.stages:
            path = self._tail.graph if stage.trainable and self._tail is not None else made / stage.graph.name
            needed = [spec.name for spec in stage.outputs]
            session = open_session(
                path,
                optimize=stage.optimizes(stage.prepack),
                prepack=stage.prepack,
                options=self._caller.copy(),
            )
            values.update(zip(needed, run_stage(ort, session, stage, needed, values, None), strict=True))
        for name, wanted in expected.items():
            if not relative_error(to_python(ort, values[name]), wanted) <= TOLERANCE:
                raise OutputError(f"its output '{name}' differs from the portable graph's; nothing was changed")


def _native_stage(folder: Path, stage: StageEntry, made: Path, number: int, own_threads: bool) -> StageEntry:
    """Write a portable stage as one of this machine, and return its entry.

    Of the caller's options only the kind of threads counts: sizes that they fix are not the bundle's.
    """
    import onnxruntime as ort

    unnamed = made / f"part-{number:02}.ort"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    without_threads(options, own_threads)
    options.optimized_model_filepath = path_option(unnamed)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.disable_prepacking", "1")
    with making_session():
        stock_session(folder / stage.graph.name, options)
    sha256 = sha256_of(unnamed)
    file = unnamed.rename(made / f"native-{number:02}-{sha256[:12]}.ort")
    return stage._replace(
        graph=File(file.name, file.stat().st_size, sha256),
        weights=None,
        shares=(),
        optimized=True,
        mapped=True,
        upgrade=not stage.prepack,  # nobody has measured whether that pays
        read_order=(),
        reoptimize=False,
    )


def _bytes(variant: Variant) -> int:
    """Return what a variant's stages take: what they are known to weigh, or their files where those are larger."""
    return sum(max(stage.weights_bytes, stage.graph.bytes) for stage in variant.stages)


def _put_into_bundle(folder: Path, portable: Variant, native: Variant, made: Path) -> None:
    """Exchange the bundle with one that has the variant too, first of all.

    Raises:
        OutputError: If it cannot be replaced, or its portable variant is not the one that was loaded.
    """
    manifest = read_manifest(folder)
    if manifest.variants[-1] != portable:  # another bundle stands there by now, or only the frozen stages were loaded
        raise OutputError(f"'{folder}' holds another portable graph than the one that was loaded")
    variants = (
        native,
        *(each for each in manifest.variants if (each.cpu, each.runtime) != (native.cpu, native.runtime)),
    )
    for file in manifest.files():
        _link(folder / file.name, made / file.name)

    def check(target: Path) -> None:
        _check_target(target)
        if read_manifest(target) != manifest:
            raise OutputError(f"'{target}' holds another bundle by now")

    _write(folder, manifest._replace(variants=variants), made, check)


def _write(target: Path, manifest: Manifest, made: Path, check: Callable[[Path], None]) -> None:
    """Put the bundle `target` into place, with the files that its manifest names taken from a folder."""
    text = json.dumps(manifest.to_json(), indent=1)
    validate(json.loads(text))
    with replacing(target, check, alone) as folder:
        for file in manifest.files():
            _link(made / file.name, folder / file.name)
        (folder / MANIFEST).write_text(seal(text), encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without links, or another one
        copy_file(source, target)


def _writable(folder: Path) -> Path | None:
    """Return the folder that a bundle stands in, if the bundle may be replaced."""
    try:
        _check_target(folder)
    except OutputError:
        return None
    return folder.parent


def _check_target(folder: Path) -> None:
    """Raise `OutputError` unless a bundle may be put there; personalized tails, made meanwhile perhaps, would go."""
    check_place(folder, FORMAT)
    if tails_of(folder):
        raise OutputError(f"'{folder}' holds personalized tails, which a new bundle would lose")


def _cache_parent() -> Path:
    cache = cache_folder()
    if cache is None:
        raise OutputError("neither the bundle can be written nor is there a cache folder")
    (cache / "natives").mkdir(parents=True, exist_ok=True)
    return cache / "natives"


def _place(manifest: Manifest, runtime: str) -> Path | None:
    """Return where in the cache the variant of a bundle is kept, for this processor and a version of the runtime."""
    cache = cache_folder()
    if cache is None:
        return None
    stages = manifest.variants[-1].stages
    files = [file.sha256 for stage in stages for file in (stage.graph, stage.weights) if file is not None]
    key = hashlib.sha256(repr((files, cpu_architecture(), runtime)).encode()).hexdigest()
    return cache / "natives" / f"{key[:24]}.splitload"
