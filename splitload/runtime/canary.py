"""Whether a runtime is fit for a native variant: the tiny stage that uses each of its operators, run and remembered.

Layouts and operators of onnxruntime's own are no standard, and yet they rarely change: what one version has written the
next ones run alike. A canary shows in a millisecond or two whether that holds for the version at hand. What has passed
is kept in the user's cache, a line for each bundle, runtime and processor. A line that cannot be read, or is another's,
counts for nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.base.cache import cache_folder
from splitload.base.errors import BundleError
from splitload.base.machine import cpu_architecture, cpu_model
from splitload.base.regular import open_regular
from splitload.bundle.manifest import Canary
from splitload.bundle.read import check_files
from splitload.runtime.forks import making_session
from splitload.runtime.pool import started
from splitload.runtime.stock import stock_session
from splitload.runtime.warmup import without_threads

if TYPE_CHECKING:
    import numpy as np

_passed: list[tuple[Path, str]] = []  # what is to be remembered: file and line of each


def failure(folder: Path, canary: Canary, runtime: str, *, own_threads: bool = True) -> str | None:
    """Return why a runtime is not fit for the variant of a canary, or None if it is.

    Args:
        folder: The bundle.
        canary: The variant's.
        runtime: Version of the onnxruntime that is imported.
        own_threads: Whether sessions have threads of their own, or the process has a pool that all must use.

    Raises:
        BundleError: If a file of the canary is missing or, where it dies, damaged: that tells nothing of the runtime.
    """
    place, line = _memory(canary, runtime)
    if place is not None and _is_remembered(place, line):
        return None
    check_files(folder, canary)  # whatever was asked of the bundle: a FIFO would have us wait
    found = _try(folder, canary, own_threads)
    if found is not None:
        check_files(folder, canary, "hashes")  # only now: to import what hashes takes twice as long as the canary
    elif place is not None:
        _passed.append((place, line))
    return found


def remember() -> None:
    """Keep which canaries have passed, on a thread: called after an answer, as to write takes a third of a canary."""
    while _passed:
        with contextlib.suppress(IndexError):  # another thread came first
            started(threading.Thread(target=_remember, args=_passed.pop(), name="splitload-canary"))


def answers(graph: Path, own_threads: bool = True) -> Mapping[str, np.ndarray[Any, Any]]:
    """Return what a canary gives, by the name of the output; made as first sessions on stages are, on this thread.

    Raises:
        Exception: onnxruntime's, which have no common root.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    without_threads(options, own_threads)
    with making_session():
        session = stock_session(graph, options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {}), strict=True))


def _try(folder: Path, canary: Canary, own_threads: bool) -> str | None:
    """Run a canary; return what it died of, if it did."""
    import numpy as np

    try:
        found = np.concatenate([value.ravel() for value in answers(folder / canary.graph.name, own_threads).values()])
        least, most = np.fromfile(folder / canary.answers.name, "<f4").reshape(2, -1)
    except Exception as error:  # onnxruntime has no common root for its errors
        return " ".join(str(error).split())[:200] or type(error).__name__
    if found.shape != least.shape:
        return f"it gives {found.size} values, not {least.size}"
    wrong = int(found.size - np.count_nonzero((least <= found) & (found <= most)))  # NaN is wrong as well
    return f"{wrong} of {found.size} values are wrong" if wrong else None


def _memory(canary: Canary, runtime: str) -> tuple[Path | None, str]:
    """Return the file that says that a canary has passed here, and what it must hold; no file without a cache."""
    line = " | ".join(
        (runtime, cpu_architecture(), cpu_model(), canary.graph.sha256, canary.answers.sha256, "passed\n")
    )
    cache = cache_folder()
    name = f"{canary.graph.sha256[:16]}-{zlib.crc32(line.encode()):08x}"
    return None if cache is None else cache / "canaries" / name, line


def _is_remembered(place: Path, line: str) -> bool:
    expected = line.encode()
    try:
        with open_regular(place, links=True) as file:  # a FIFO would have us wait
            return file.read(len(expected) + 1) == expected
    except (OSError, BundleError):
        return False


def _remember(place: Path, line: str) -> None:
    """Keep the line, whole or not at all; where it cannot be kept, the canary runs again next time.

    It is not flushed to storage, which takes longer than the canary: a line that is lost or empty does no harm.
    """
    made = place.with_name(f".{place.name}.{os.urandom(4).hex()}")
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            made.write_bytes(line.encode())
            made.replace(place)
        finally:
            made.unlink(missing_ok=True)
