"""Whether a runtime is fit for a native variant: the tiny stage that uses each of its operators, run and remembered.

Layouts and operators of onnxruntime's own are no standard, and yet they rarely change: what one version has written the
next ones run alike. A canary shows in a millisecond or two whether that holds for the version at hand. What has passed
is kept in the user's cache, a line for each bundle, runtime and processor. A line that cannot be read, or is another's,
counts for nothing.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib

from splitload.base.cache import cache_place
from splitload.base.errors import BundleError
from splitload.base.machine import cpu_architecture, cpu_model
from splitload.base.regular import open_regular
from splitload.bundle.manifest import Canary
from splitload.bundle.read import check_files
from splitload.runtime.forks import making_session
from splitload.runtime.pool import started
from splitload.runtime.stock import stock_session, without_threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    import numpy as np

    from splitload.base.regular import StrPath

_passed: list[tuple[str, str]] = []  # what is to be remembered: file and line of each


def failure(folder: StrPath, canary: Canary, runtime: str, run: Callable[[str], Sequence[float]]) -> str | None:
    """Return why a runtime is not fit for the variant of a canary, or None if it is.

    Args:
        folder: The bundle.
        canary: The variant's.
        runtime: Version of the onnxruntime that runs it.
        run: Returns what it gives, see `Engine.canary`.

    Raises:
        BundleError: If a file of the canary is missing or, where it dies, damaged: that tells nothing of the runtime.
    """
    place, line = _memory(canary, runtime)
    if place is not None and _is_remembered(place, line):
        return None
    check_files(folder, canary)  # whatever was asked of the bundle: a FIFO would have us wait
    found = _try(folder, canary, run)
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


def answers(graph: StrPath, own_threads: bool = True) -> Mapping[str, np.ndarray[Any, Any]]:
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


def in_module(graph: StrPath, own_threads: bool = True) -> list[float]:
    """Return what a canary gives under the Python module, all outputs one after the other."""
    return [number for value in answers(graph, own_threads).values() for number in value.ravel().tolist()]


def _try(folder: StrPath, canary: Canary, run: Callable[[str], Sequence[float]]) -> str | None:
    """Run a canary; return what it died of, if it did."""
    try:
        found = run(os.path.join(folder, canary.graph.name))
        with open(os.path.join(folder, canary.answers.name), "rb") as file:
            raw = file.read()
        bounds = struct.unpack(f"<{len(raw) // 4}f", raw)
    except Exception as error:  # onnxruntime has no common root for its errors
        return " ".join(str(error).split())[:200] or type(error).__name__
    half = len(bounds) // 2
    if len(found) != half:
        return f"it gives {len(found)} values, not {half}"
    right = sum(
        least <= number <= most for least, number, most in zip(bounds[:half], found, bounds[half:], strict=True)
    )
    return f"{half - right} of {half} values are wrong" if right < half else None  # NaN is wrong as well


def _memory(canary: Canary, runtime: str) -> tuple[str | None, str]:
    """Return the file that says that a canary has passed here, and what it must hold; no file without a cache."""
    line = " | ".join(
        (runtime, cpu_architecture(), cpu_model(), canary.graph.sha256, canary.answers.sha256, "passed\n")
    )
    cache = cache_place()
    name = f"{canary.graph.sha256[:16]}-{zlib.crc32(line.encode()):08x}"
    return None if cache is None else os.path.join(cache, "canaries", name), line


def _is_remembered(place: str, line: str) -> bool:
    expected = line.encode()
    try:
        with open_regular(place, links=True) as file:  # a FIFO would have us wait
            return file.read(len(expected) + 1) == expected
    except (OSError, BundleError):
        return False


def _remember(place: str, line: str) -> None:
    """Keep the line, whole or not at all; where it cannot be kept, the canary runs again next time.

    It is not flushed to storage, which takes longer than the canary: a line that is lost or empty does no harm.
    """
    folder, name = os.path.split(place)
    made = os.path.join(folder, f".{name}.{os.urandom(4).hex()}")
    with contextlib.suppress(OSError):
        os.makedirs(folder, exist_ok=True)
        try:
            with open(made, "wb") as file:
                file.write(line.encode())
            os.replace(made, place)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(made)
