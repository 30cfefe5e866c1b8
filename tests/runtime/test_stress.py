"""Many models loaded, asked and closed at once: nothing crashes, and no thread or memory stays behind."""

from __future__ import annotations

import gc
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import models
import numpy as np
import onnxruntime as ort
import pytest
from runtime_models import feeds, loader_with

from splitload import ParallelLoader
from splitload.base.errors import StageError
from splitload.runtime.pool import LoadingPool

pytestmark = pytest.mark.usefixtures("engine")

WAIT_S = 60
CALLERS = 8
MAX_GROWTH_BYTES = 20 << 20
STATUS = Path("/proc/self/status")
needs_proc = pytest.mark.skipif(
    not STATUS.is_file(), reason="this system does not tell threads and memory of a process"
)

_log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def expected(chain_model: Path) -> list[list[Any]]:
    """What the whole model gives for the feeds of each seed."""
    session = ort.InferenceSession(chain_model, providers=["CPUExecutionProvider"])
    return [session.run(None, feeds(rows=seed + 1, seed=seed)) for seed in range(CALLERS)]


def status(key: str) -> int:
    """Return a figure that the system keeps of this process; memory in kB."""
    found = re.search(rf"^{key}:\s+(\d+)", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def loop(bundle: Path, expected: list[list[Any]], loops: int) -> None:
    """Load, infer and close `loops` times, spread over threads; every fourth stays until it is made anew."""
    loader = loader_with(pool=LoadingPool(idle_s=0.02))  # whose threads end soon
    numbers = iter(range(loops))
    lock = threading.Lock()

    def call(seed: int) -> int:
        done = 0
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return done
            with loader(bundle) as model:
                assert_right(model, seed)
                if number % 4 == 3:
                    assert model.wait("upgraded", WAIT_S)
                    assert_right(model, seed)
            done += 1

    def assert_right(model: ParallelLoader, seed: int) -> None:
        answer = model.run(None, feeds(rows=seed + 1, seed=seed))
        for got, stock in zip(answer, expected[seed], strict=True):
            np.testing.assert_allclose(got, stock, rtol=1e-5, atol=1e-5)

    with ThreadPoolExecutor(CALLERS) as callers:
        assert sum(callers.map(call, range(CALLERS))) == loops


def settle(threads: int) -> None:
    """Wait until the process has no more threads than that."""
    gc.collect()
    deadline = time.monotonic() + WAIT_S
    while status("Threads") > threads:
        assert time.monotonic() < deadline, [thread.name for thread in threading.enumerate()]
        time.sleep(0.01)


@needs_proc
def test_forty_loads_leave_no_thread(chain_bundle: Path, expected: list[list[Any]]) -> None:
    before, names = status("Threads"), {thread.name for thread in threading.enumerate()}
    loop(chain_bundle, expected, 40)
    settle(before)
    assert {thread.name for thread in threading.enumerate()} <= names


@needs_proc
@pytest.mark.slow
def test_a_thousand_loads_leave_neither_threads_nor_memory(chain_bundle: Path, expected: list[list[Any]]) -> None:
    """Shows the figures with `-o log_cli=true -o log_cli_level=INFO`."""
    before = status("Threads")
    loop(chain_bundle, expected, 200)
    settle(before)
    early_bytes = status("VmRSS") << 10
    loop(chain_bundle, expected, 800)
    settle(before)
    late_bytes = status("VmRSS") << 10
    _log.info("VmRSS is %d bytes after 200 loops, %d after 1,000", early_bytes, late_bytes)
    assert late_bytes <= early_bytes + MAX_GROWTH_BYTES


@pytest.mark.parametrize("arrays", ["numpy", "buffers"])
def test_sixteen_threads_run_one_model_while_it_loads_and_is_made_anew_and_closed(
    chain_bundle: Path, expected: list[list[Any]], arrays: Literal["numpy", "buffers"]
) -> None:
    threads, loads = 16, 3
    for _ in range(loads):
        loader = ParallelLoader(chain_bundle, threads=2, arrays=arrays)
        barrier, upgraded = threading.Barrier(threads), threading.Event()

        def call(
            number: int,
            model: ParallelLoader = loader,
            barrier: threading.Barrier = barrier,
            upgraded: threading.Event = upgraded,
        ) -> int:
            """Return how many answers were right before the model was closed, which two of the threads do."""
            seed, right = number % CALLERS, 0
            kept: list[tuple[Any, Any]] = []
            barrier.wait(WAIT_S)
            try:
                while True:
                    kept = [
                        *kept[-3:],
                        *zip(model.run(None, feeds(rows=seed + 1, seed=seed)), expected[seed], strict=True),
                    ]
                    for got, stock in kept:  # those of sessions that were replaced since are still right
                        np.testing.assert_allclose(np.asarray(got), stock, rtol=1e-5, atol=1e-5)
                    right += 1
                    if number < 2 and model.wait("upgraded", WAIT_S) and upgraded.wait(WAIT_S):
                        model.close()
                    if number == 2 and model.wait("upgraded", WAIT_S) and right > 20:
                        upgraded.set()
            except StageError as error:
                assert "closed" in str(error)
            for got, stock in kept:
                np.testing.assert_allclose(np.asarray(got), stock, rtol=1e-5, atol=1e-5)
            return right

        with ThreadPoolExecutor(threads) as callers:
            counts = list(callers.map(call, range(threads)))
        assert min(counts) >= 1


@pytest.mark.xfail(
    tuple(map(int, ort.__version__.split(".")[:2])) < (1, 31),
    reason="onnxruntime before 1.31 holds the interpreter's lock while it makes a session",
    strict=True,
)
def test_other_threads_run_while_onnxruntime_makes_a_session() -> None:
    """Loading in parallel rests on this: onnxruntime lets go of the interpreter while it builds, from 1.31 on."""
    model = models.chain(16_000).SerializeToString()
    stop, ticking = threading.Event(), threading.Event()
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while not stop.is_set():
            time.sleep(0.001)
            ticks += 1
            ticking.set()

    def build() -> int:
        before = ticks
        ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        return ticks - before

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        assert ticking.wait(WAIT_S)
        with ThreadPoolExecutor(1) as builder:
            during = builder.submit(build).result(WAIT_S)
    finally:
        stop.set()
        ticker.join()
    assert during >= 20
