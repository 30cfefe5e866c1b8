"""Counts what is made and released of the C library's objects, by a script that loads, runs and fails in every way.

Called as `ledger.py FOLDER RUNS LIFETIMES`, in a process of its own, where the first object of each kind is counted
too. FOLDER holds the bundles of `test_ledger.py`. Prints what was made and what is left, as JSON.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from splitload.runtime.capi.library import Library, RuntimeFailure, library
from splitload.runtime.loader import ParallelLoader  # not by way of `splitload`, which has the environment made at once
from splitload.runtime.pool import SHARED

MADE = {
    "CreateEnv": "Env",
    "CreateSession": "Session",
    "CreateSessionFromArray": "Session",
    "CreateSessionOptions": "SessionOptions",
    "CreateRunOptions": "RunOptions",
    "CreateCpuMemoryInfo": "MemoryInfo",
    "CreateArenaCfgV2": "ArenaCfg",
    "CreateTensorWithDataAsOrtValue": "Value",
    "GetTensorTypeAndShape": "TensorTypeAndShapeInfo",
    "SessionGetInputName": "name",
    "SessionGetOutputName": "name",
}
RELEASED = {f"Release{kind}": kind for kind in {*MADE.values(), "Status"} - {"Env", "name"}} | {"AllocatorFree": "name"}
WIDTH = 16  # of the chain's inputs


class Ledger:
    """What was made of each kind, and the addresses of what is left.

    Args:
        counted: The library, whose functions are wrapped.
    """

    def __init__(self, counted: Library) -> None:
        self.made: Counter[str] = Counter()
        self.left: dict[str, set[int]] = {kind: set() for kind in {*MADE.values(), *RELEASED.values()}}
        self._lock = threading.Lock()
        for name, kind in MADE.items():
            setattr(counted, name, self._making(kind, getattr(counted, name)))
        for name, kind in RELEASED.items():
            setattr(counted, name, self._releasing(kind, getattr(counted, name)))
        counted.Run = self._running(counted.Run)  # type: ignore[method-assign]
        counted.GetErrorCode = self._reading(counted.GetErrorCode)  # type: ignore[method-assign]

    def _note(self, kind: str, address: int | None) -> None:
        assert address, kind
        with self._lock:
            assert address not in self.left[kind], kind
            self.made[kind] += 1
            self.left[kind].add(address)

    def _making(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def make(*arguments: Any) -> None:
            function(*arguments)
            self._note(kind, ctypes.c_void_p.from_address(arguments[-1]).value)

        return make

    def _releasing(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def release(*arguments: Any) -> None:
            handle = arguments[-1]
            address = getattr(handle, "value", handle)
            with self._lock:  # before it is released, as another thread may be given its address
                self.left[kind].remove(address)
            function(*arguments)

        return release

    def _running(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> None:
            outputs = (ctypes.c_void_p * arguments[-2]).from_address(arguments[-1])
            lent = [address is not None for address in outputs]
            try:
                function(*arguments)
            except RuntimeFailure:
                assert [address is not None for address in outputs] == lent
                raise
            for address, is_lent in zip(outputs, lent, strict=True):
                if not is_lent:
                    self._note("Value", address)

        return run

    def _reading(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def read(status: int) -> Any:
            self._note("Status", status)
            return function(status)

        return read


def floats(*shape: int) -> Any:
    """Return ones as a buffer."""
    size = 1
    for each in shape:
        size *= each
    return memoryview(array.array("f", [1.0]) * size).cast("B").cast("f", shape)


def fails(call: Callable[[], Any]) -> None:
    """Call what has to raise an error."""
    try:
        call()
    except Exception:
        return
    raise AssertionError("it did not fail")


def chain_feeds(rows: int = 2) -> dict[str, Any]:
    """Return inputs of the chain."""
    return {"x": floats(rows, WIDTH), "z": floats(WIDTH)}


def same(one: Any, other: Any, *, is_exact: bool) -> bool:
    """Return whether two answers are the same: to the bit, or but for the order in which products are added up."""
    if is_exact:
        return bool(one.tobytes() == other.tobytes())
    numbers, others = (array.array("f", each.tobytes()) for each in (one, other))
    return len(numbers) == len(others) and all(abs(a - b) < 1e-5 for a, b in zip(numbers, others, strict=True))


def run_until_upgraded(model: ParallelLoader) -> None:
    """Run while sessions are swapped in, and until all are."""
    deadline_s = time.perf_counter() + 60
    while not model.wait("upgraded", 0.01):
        model.run(None, chain_feeds())
        assert time.perf_counter() < deadline_s, "the upgrade takes more than 60 s"


def right_runs(model: ParallelLoader, turn: int) -> None:
    """Run in the ways that succeed; outputs are kept for a while, and read in every form.

    Sessions with rearranged weights compute one row with other last bits. They are swapped in between the first two
    runs here, and never between two others, however busy the machine is.
    """
    y, early = model.run(None, chain_feeds(1 + turn % 7))
    if turn == 0:
        run_until_upgraded(model)
    (again,) = model.run(["early"], {"x": floats(1 + turn % 7, WIDTH), "z": floats(WIDTH)})
    assert same(again, early, is_exact=turn > 0)
    assert memoryview(y).shape == y.shape
    held = y.__dlpack__() if turn % 2 else None
    del y
    assert (held is not None) == bool(turn % 2)
    (given,) = model.run(["early"], {"x": early, "z": floats(WIDTH)})  # an answer is fed again
    assert given.shape == early.shape


def wrong_runs(model: ParallelLoader, breaks: ParallelLoader) -> None:
    """Run in the ways that fail: before the runtime is asked, and inside of it."""
    good = chain_feeds()
    for bad in (
        {**good, "x": floats(2, WIDTH + 1)},
        {**good, "x": floats(WIDTH)},
        {**good, "x": memoryview(bytes(2 * WIDTH))},
        {**good, "x": memoryview(floats(2, WIDTH)).cast("B")},
        {**good, "x": object()},
        {**good, "w": floats(1)},
        {"x": good["x"]},
    ):
        fails(lambda bad=bad: model.run(None, bad))  # type: ignore[misc]
    fails(lambda: model.run(["nothing"], good))
    three = memoryview(array.array("q", [3]))
    fails(lambda: breaks.run(None, {"x": floats(4), "shape": three}))


def lifetime(folder: Path, turn: int) -> Any:
    """Load in every way, and return an answer that outlives its loader."""
    kinds = ("closed", "dropped", "upgraded", "unused", "damaged", "large")
    kind = kinds[turn % len(kinds)]
    name = kind if kind in ("damaged", "large") else "chain"
    with contextlib.suppress(Exception) if kind == "damaged" else contextlib.nullcontext():
        model = ParallelLoader(folder / name, arrays="buffers", engine="library", upgrade=kind == "upgraded")
        if kind == "large":
            (answer,) = model.run(None, {"x": floats(1, 1 << 20)})
            model.close()
            return answer
        if kind == "unused":
            model.close()
            return None
        answer, _ = model.run(None, chain_feeds())
        if kind == "upgraded":
            run_until_upgraded(model)
        again, _ = model.run(None, chain_feeds())
        assert same(again, answer, is_exact=kind != "upgraded")
        if kind != "dropped":
            model.close()
        return answer
    return None


def resident_bytes() -> int:
    """Return the memory of this process; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    found = re.search(r"VmRSS:\s+(\d+)", status.read_text()) if status.is_file() else None
    return int(found[1]) << 10 if found else 0


def figures(folder: Path, runs: int, lifetimes: int) -> Iterator[tuple[str, int]]:
    """Do all of it; yield the resident memory after a tenth and after all of each."""
    with (
        ParallelLoader(folder / "chain", arrays="buffers", engine="library") as model,
        ParallelLoader(folder / "breaks", arrays="buffers", engine="library") as breaks,
    ):
        for turn in range(runs):
            right_runs(model, turn)
            if turn % 10 == 0:
                wrong_runs(model, breaks)
            if turn + 1 in (runs // 10, runs):
                gc.collect()
                yield f"after {turn + 1} runs", resident_bytes()
    answers: list[Any] = []
    for turn in range(lifetimes):
        answers = [*answers[-5:], lifetime(folder, turn)]
        if turn + 1 in (lifetimes // 10, lifetimes):
            gc.collect()
            yield f"after {turn + 1} lifetimes", resident_bytes()
    assert all(answer.tobytes() for answer in answers if answer is not None)


def main() -> None:
    """Do what the arguments say."""
    ledger = Ledger(library())
    resident = dict(figures(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
    done = threading.Event()
    SHARED.submit(done.set)
    assert done.wait(60)
    gc.collect()
    left = {kind: len(addresses) for kind, addresses in ledger.left.items()}
    sys.stdout.write(json.dumps({"made": ledger.made, "left": left, "resident_bytes": resident}))


if __name__ == "__main__":
    main()
