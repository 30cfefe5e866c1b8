"""How loaders share one pool of threads: turns, failures, many models, a fork; and stock sessions beside them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import runtime_models
from runtime_models import feeds, loader_with
from test_pool import until

from splitload import ParallelLoader
from splitload.base.errors import StageError
from splitload.runtime.pool import LoadingPool

pytestmark = pytest.mark.usefixtures("engine")

WAIT_S = 60


@pytest.fixture
def own_pool(request: pytest.FixtureRequest) -> LoadingPool:
    """A new pool, of one thread or of as many as the test's parameter says."""
    return LoadingPool(getattr(request, "param", 1))


class Loads:
    """Stands in for `open_session`: each load is recorded and waits for a gate of its bundle; what opens is real.

    Attributes:
        order: Bundle and stage of each load, in the order they began.
        gates: Loads of a bundle end when its gate is set, by the bundle's name.
        begun: Set when the first load of a bundle begins.
        most: The most loads at a time.
        threads: Those that loaded.
        loader: A `ParallelLoader` that opens its sessions by this, on a pool.
    """

    def __init__(self, pool: LoadingPool, *bundles: Path) -> None:
        self.loader = loader_with(open_session=self, pool=pool)
        self.order: list[tuple[str, int]] = []
        self.gates = {bundle.stem: threading.Event() for bundle in bundles}
        self.begun = {bundle.stem: threading.Event() for bundle in bundles}
        self.failing: set[str] = set()
        self.most = 0
        self.threads: set[threading.Thread] = set()
        self._running = 0
        self._lock = threading.Lock()

    def __call__(self, open_session: Any, graph: Path, **options: Any) -> Any:
        bundle, stage = Path(graph).parent.stem, int(Path(graph).stem.split("-")[1])
        with self._lock:
            self.order.append((bundle, stage))
            self.threads.add(threading.current_thread())
            self._running += 1
            self.most = max(self.most, self._running)
        self.begun[bundle].set()
        try:
            assert self.gates[bundle].wait(WAIT_S)
            if bundle in self.failing:
                raise RuntimeError("no luck")
            return open_session(graph, **options)
        finally:
            with self._lock:
                self._running -= 1


@pytest.fixture
def loads(own_pool: LoadingPool, chain_bundle: Path, own_bundle: Path) -> Loads:
    return Loads(own_pool, chain_bundle, own_bundle)


def open_both(loads: Loads, chain_bundle: Path, own_bundle: Path, **options: Any) -> list[ParallelLoader]:
    """Open both bundles; nothing is loaded before the first one's gate is set."""
    first = loads.loader(chain_bundle, upgrade=False, **options)
    assert loads.begun["chain"].wait(WAIT_S)
    return [first, loads.loader(own_bundle, upgrade=False, **options)]


def test_two_loaders_take_turns(own_pool: LoadingPool, loads: Loads, chain_bundle: Path, own_bundle: Path) -> None:
    first, second = open_both(loads, chain_bundle, own_bundle, threads=1)
    with first, second:
        loads.gates["own"].set()
        assert loads.order == [("chain", 0)]
        loads.gates["chain"].set()
        assert first.wait("loaded", WAIT_S)
        assert second.wait("loaded", WAIT_S)
        for got, same in zip(first.run(None, feeds()), second.run(None, feeds()), strict=True):
            np.testing.assert_array_equal(got, same)
    assert loads.order == [(name, stage) for stage in range(4) for name in ("chain", "own")]
    assert len(loads.threads) == 1


@pytest.mark.parametrize("own_pool", [2], indirect=True)
def test_two_loaders_on_two_threads_take_turns(
    own_pool: LoadingPool, loads: Loads, chain_bundle: Path, own_bundle: Path
) -> None:
    first, second = open_both(loads, chain_bundle, own_bundle, threads=2)
    with first, second:
        until(lambda: len(loads.order) == 2)
        loads.gates["chain"].set()  # its next stages come after the second one's first
        assert loads.begun["own"].wait(WAIT_S)
        until(lambda: len(loads.order) == 4)
        assert sorted(loads.order) == [("chain", 0), ("chain", 1), ("own", 0), ("own", 1)]
        loads.gates["own"].set()
        assert first.wait("loaded", WAIT_S)
        assert second.wait("loaded", WAIT_S)
    assert sorted(loads.order) == [(name, stage) for name in ("chain", "own") for stage in range(4)]
    assert (loads.most, len(loads.threads)) == (2, 2)


def test_a_loader_that_fails_leaves_the_pool_to_the_other(
    own_pool: LoadingPool, loads: Loads, chain_bundle: Path, own_bundle: Path
) -> None:
    loads.failing.add("chain")
    first, second = open_both(loads, chain_bundle, own_bundle, threads=1)
    with first, second:
        loads.gates["own"].set()
        loads.gates["chain"].set()
        assert len(second.run(None, feeds())) == 2
        with pytest.raises(StageError, match=r"stage 1 of .* no luck"):
            first.wait("loaded", WAIT_S)
    assert loads.order == [("chain", 0), *(("own", stage) for stage in range(4))]


def test_a_loader_closed_before_its_turn_loads_nothing(
    own_pool: LoadingPool, loads: Loads, chain_bundle: Path, own_bundle: Path
) -> None:
    first, second = open_both(loads, chain_bundle, own_bundle, threads=1)
    second.close()  # does not wait for the first one
    loads.gates["chain"].set()
    with first:
        assert first.wait("loaded", WAIT_S)
    until(lambda: not own_pool._jobs)
    assert loads.order == [("chain", stage) for stage in range(4)]


@pytest.mark.parametrize("own_pool", [2], indirect=True)
def test_many_models_load_on_the_threads_there_are(own_pool: LoadingPool, chain_bundle: Path) -> None:
    loads = Loads(own_pool, chain_bundle)
    models = [loads.loader(chain_bundle, threads=2, upgrade=False) for _ in range(6)]
    until(lambda: len(loads.order) == 2)
    assert all(model.threads == 2 for model in models)
    assert len(own_pool._threads) == 2
    loads.gates["chain"].set()
    answers = [model.run(None, feeds()) for model in reversed(models)]
    for model in models:
        model.close()
    assert all(np.array_equal(answer[0], answers[0][0]) for answer in answers)
    assert len(loads.order) == 6 * 4
    assert (loads.most, len(loads.threads)) == (2, 2)


def test_a_loader_that_asks_for_more_threads_gets_them(
    own_pool: LoadingPool, loads: Loads, chain_bundle: Path, own_bundle: Path
) -> None:
    first, second = open_both(loads, chain_bundle, own_bundle, threads=3)
    until(lambda: len(loads.order) == 3)
    assert len(own_pool._threads) == 3
    for gate in loads.gates.values():
        gate.set()
    with first, second:
        assert second.wait("loaded", WAIT_S)
    assert (loads.most, len(loads.threads)) == (3, 3)


FORK = """
import os, signal, sys, threading, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads: that is the point here
import numpy as np
import runtime_models
from splitload import ParallelLoader
from splitload.runtime.opening import LoadingParts
from splitload.runtime.pool import SHARED

gate, started = threading.Event(), threading.Event()


def slow(open_session, graph, **options):
    started.set()
    gate.wait()
    return open_session(graph, **options)


class Slow(ParallelLoader):
    _parts = LoadingParts(open_session=slow)


def answer():
    with ParallelLoader(sys.argv[2]) as model:
        return model.run(None, runtime_models.feeds()) if model.wait("upgraded", 30) else []


expected = answer()
if sys.argv[3] == "while loading":
    parent = Slow(sys.argv[2], threads=4)
    assert started.wait(30)
threads = set(SHARED._threads)
assert threads
child = os.fork()
if child == 0:
    status = 1
    try:
        signal.alarm(60)  # ends the child if it hangs
        assert not SHARED._threads and not SHARED._jobs
        for _ in range(2):
            for got, same in zip(answer(), expected, strict=True):
                np.testing.assert_array_equal(got, same)
        grandchild = os.fork()
        if grandchild == 0:
            signal.alarm(60)
            os._exit(0 if len(answer()) == 2 else 3)
        assert os.waitpid(grandchild, 0)[1] == 0
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)
assert SHARED._threads == threads
print("child", os.waitpid(child, 0)[1], flush=True)
gate.set()
if sys.argv[3] == "while loading":
    with parent:
        assert len(parent.run(None, runtime_models.feeds())) == 2
assert len(answer()) == 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.parametrize("when", ["after loading", "while loading"])
def test_a_forked_child_loads_on_a_pool_of_its_own(chain_bundle: Path, when: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(Path(runtime_models.__file__).parent), str(chain_bundle), when],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "child 0\n", "")


def test_a_stock_session_is_not_in_the_way(own_pool: LoadingPool, chain_model: Path, chain_bundle: Path) -> None:
    """Sessions of the caller and of the loaders live beside each other, made in any order."""
    before = ort.InferenceSession(chain_model, providers=["CPUExecutionProvider"])
    with loader_with(pool=own_pool)(chain_bundle) as model:
        assert model.wait("upgraded", WAIT_S)
        after = ort.InferenceSession(chain_model, providers=["CPUExecutionProvider"])
        expected = model.run(None, feeds())
        for session in (before, after):
            for got, same in zip(session.run(None, feeds()), expected, strict=True):
                np.testing.assert_allclose(got, same, atol=1e-5)
