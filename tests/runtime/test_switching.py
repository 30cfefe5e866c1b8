"""A loader that takes the Python module in place of the C library, while the stages of that are on their way or run."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import runtime_models
from runtime_models import feeds, loader_with

from splitload import ParallelLoader
from splitload.base.errors import StageError
from splitload.runtime.capi.engine import LibraryEngine
from splitload.runtime.pool import LoadingPool

WAIT_S = 60


@pytest.fixture(autouse=True)
def _as_if_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitload.runtime.engine.module_is_imported", lambda: False)


class Loads:
    """Stands in for `open_session`: notes what is loaded, and has some loads of the C library wait.

    Attributes:
        seen: What was begun, in the order: the engine, the stage, and whether it is made anew.
        waits_at: The stages of the C library, and whether they are made anew, whose loads wait for the gate.
        begun: Set when one waits.
        gate: Ends the wait.
        sessions: Of the C library.
    """

    def __init__(self, *waits_at: tuple[int, bool]) -> None:
        self.seen: list[tuple[str, int, bool]] = []
        self.waits_at = waits_at
        self.begun, self.gate = threading.Event(), threading.Event()
        self.sessions: list[weakref.ref[Any]] = []
        self.loader = loader_with(open_session=self, pool=LoadingPool(2))

    def __call__(self, open_session: Any, graph: Path, *, prepack: bool, **options: Any) -> Any:
        engine, stage = open_session.__self__.name, int(Path(graph).stem.split("-")[1])
        self.seen.append((engine, stage, prepack))
        if engine == "library" and (stage, prepack) in self.waits_at:
            self.begun.set()
            assert self.gate.wait(WAIT_S)
        session = open_session(graph, prepack=prepack, **options)
        if engine == "library":
            self.sessions.append(weakref.ref(session))
        return session

    def of(self, engine: str, *, prepack: bool) -> list[int]:
        """Return the stages that an engine has begun."""
        return [stage for name, stage, anew in self.seen if (name, anew) == (engine, prepack)]

    def left(self) -> int:
        """Return how many sessions of the C library there are."""
        return sum(session() is not None for session in self.sessions)

    def are_gone(self) -> bool:
        """Wait until there is no session of the C library, and return whether that came."""
        deadline = time.monotonic() + WAIT_S
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.001)
        return not self.left()


def by_module(model: ParallelLoader) -> list[Any]:
    """Run in a way that only the Python module knows."""
    values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in feeds().items()}
    return [value.numpy() for value in model.run_with_ort_values(None, values)]


def same(answers: list[Any], expected: list[Any]) -> bool:
    return all(np.allclose(one, other, atol=1e-5) for one, other in zip(answers, expected, strict=True))


@pytest.fixture(scope="module")
def expected(chain_bundle: Path) -> list[Any]:
    with ParallelLoader(chain_bundle, engine="python") as model:
        return model.run(None, feeds())


def test_former_stages_are_freed_at_once(chain_bundle: Path, expected: list[Any]) -> None:
    loads = Loads()
    gc.disable()  # nothing waits for it
    try:
        with loads.loader(chain_bundle) as model:
            assert same(model.run(None, feeds()), expected)
            assert model.wait("upgraded", WAIT_S)
            assert (model.engine, loads.left()) == ("library", 4)
            assert same(by_module(model), expected)
            assert (model.engine, model.why_engine) == ("python", "an OrtValue as an output came to be used")
            assert loads.are_gone()
    finally:
        gc.enable()


@pytest.mark.parametrize("overlap", [True, False])
def test_loading_is_given_up_and_runs_that_wait_for_it_begin_anew(
    chain_bundle: Path, expected: list[Any], overlap: bool
) -> None:
    loads = Loads((2, False))
    with loads.loader(chain_bundle, threads=1, overlap=overlap) as model, ThreadPoolExecutor(3) as threads:
        runs = threads.submit(lambda: model.run((name for name in ["y", "early"]), feeds()))
        waits = [threads.submit(model.wait, until, WAIT_S) for until in ("loaded", "upgraded")]
        assert loads.begun.wait(WAIT_S)
        assert same(by_module(model), expected)  # although a stage is still loaded by the C library
        assert same(runs.result(WAIT_S), expected)
        assert [wait.result(WAIT_S) for wait in waits] == [True, True]
        loads.gate.set()
        assert loads.are_gone()
        assert model.ready
    assert loads.of("library", prepack=False) == [0, 1, 2]
    assert loads.of("python", prepack=False) == [0, 1, 2, 3]


def test_upgrades_are_given_up(chain_bundle: Path, expected: list[Any]) -> None:
    loads = Loads((0, True))
    with loads.loader(chain_bundle) as model:
        model.run(None, feeds())
        assert loads.begun.wait(WAIT_S)
        assert same(by_module(model), expected)
        loads.gate.set()
        assert loads.are_gone()
    assert loads.of("library", prepack=True) == [0]


def test_a_run_under_way_keeps_the_stages_that_it_has_yet_to_run(
    chain_bundle: Path, expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, inside, gate, run_stage, ran = Loads(), threading.Event(), threading.Event(), LibraryEngine.run_stage, []

    def slow(engine: LibraryEngine, *arguments: Any, **options: Any) -> Any:
        ran.append(arguments[1])
        inside.set()
        assert gate.wait(WAIT_S)
        return run_stage(engine, *arguments, **options)

    monkeypatch.setattr(LibraryEngine, "run_stage", slow)
    with loads.loader(chain_bundle, upgrade=False) as model, ThreadPoolExecutor(1) as threads:
        model.wait()
        runs = threads.submit(model.run, None, feeds())
        assert inside.wait(WAIT_S)
        assert same(by_module(model), expected)
        assert loads.left() == 4
        gate.set()
        assert same(runs.result(WAIT_S), expected)
        del runs
        assert loads.are_gone()
    assert len(ran) == 4


def test_a_loader_that_is_closed_meanwhile_stays_closed(chain_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads()
    from splitload.runtime import loader as module

    made = module.python_engine

    def closes(*arguments: Any) -> Any:
        model.close()  # as on another thread
        return made(*arguments)

    monkeypatch.setattr(module, "python_engine", closes)
    model = loads.loader(chain_bundle)
    for _ in range(2):
        with pytest.raises(StageError, match="was closed"):
            by_module(model)
    assert model._loading.values == [None] * 4
    assert loads.are_gone()


def test_a_switch_that_fails_leaves_the_former_stages(chain_bundle: Path, expected: list[Any]) -> None:
    class Full(LoadingPool):
        is_full = False

        def submit(self, *arguments: Any) -> bool:
            return not self.is_full and super().submit(*arguments)

    pool = Full(2)
    with loader_with(pool=pool)(chain_bundle) as model:
        model.wait()
        pool.is_full = True
        with pytest.raises(StageError, match="no thread left"):
            by_module(model)
        assert model.engine == "library"
        assert same(model.run(None, feeds()), expected)
        pool.is_full = False
        assert same(by_module(model), expected)


PRELUDE = """
import os, signal, sys, threading, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
import numpy as np, onnxruntime as ort, runtime_models
import splitload.runtime.engine
from splitload.base.errors import StageError
from splitload.runtime.capi.engine import LibraryEngine
from splitload.runtime.pool import LoadingPool

splitload.runtime.engine.module_is_imported = lambda: False
feeds = runtime_models.feeds()


def same(got):
    return all(np.allclose(one, other, atol=1e-5) for one, other in zip(got, expected, strict=True))


with runtime_models.loader_with()(sys.argv[2]) as first:
    expected = first.run(None, feeds)
"""
FORK = """
inside, gate, run_stage = threading.Event(), threading.Event(), LibraryEngine.run_stage
is_slow = True


def slow(*arguments, **options):
    if is_slow:
        inside.set()
        assert gate.wait(30)
    return run_stage(*arguments, **options)


LibraryEngine.run_stage = slow
model = runtime_models.loader_with()(sys.argv[2])
model.wait()
outcomes = []
thread = threading.Thread(target=lambda: outcomes.append(model.run(None, feeds)))
thread.start()
assert inside.wait(30)
assert same(model.run(None, feeds, ort.RunOptions()))
child = os.fork()
if child == 0:
    status = 1
    try:
        signal.alarm(30)  # ends it if it hangs
        is_slow = False
        assert same(model.run(None, feeds)) and same(model.run(None, feeds, ort.RunOptions()))
        model.close()
        status = 0
    finally:
        os._exit(status)
assert os.waitpid(child, 0)[1] == 0
gate.set()
thread.join(30)
assert len(outcomes) == 1 and same(outcomes[0]) and same(model.run(None, feeds))
model.close()
print("done")
"""
# Raises at the place that `places` counts down to, as test_interrupts.py does.
INTERRUPTS = """
import faulthandler
places = 0


def prof(frame, event, argument):
    global places
    if event in ("call", "c_return") and frame.f_code is not switch.__code__:
        places -= 1
        if places < 0:
            sys.setprofile(None)
            raise KeyboardInterrupt


def switch(model):
    options = ort.RunOptions()
    sys.setprofile(prof)
    model.run(None, feeds, options)
    sys.setprofile(None)


number, ended, kept, switched = 0, 0, 0, 0
while ended < 3:
    faulthandler.dump_traceback_later(60, exit=True)
    model = runtime_models.loader_with(pool=LoadingPool(2, idle_s=0.05))(sys.argv[2])
    model.run(None, feeds)
    places = number
    try:
        switch(model)
    except KeyboardInterrupt:
        pass
    ended += places >= 0
    kept += model.engine == "library"
    switched += model.engine == "python"
    for options in (None, ort.RunOptions()):
        assert same(model.run(None, feeds, options)), number
    assert model.wait("upgraded", 30)
    former = model._former_loading()
    assert former is None or former.is_closed or former.is_ready
    model.close()
    assert not model._loading._inside
    number += 1
print(number > 100 and kept > 10 and switched > 10)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_child_that_is_forked_while_a_former_stage_runs_answers(chain_bundle: Path) -> None:
    assert output(PRELUDE + FORK, chain_bundle) == "done\n"


@pytest.mark.slow
def test_an_interrupt_anywhere_leaves_a_loader_that_answers(chain_bundle: Path) -> None:
    assert output(PRELUDE + INTERRUPTS, chain_bundle) == "True\n"


def output(code: str, bundle: Path) -> str:
    words = [str(Path(runtime_models.__file__).parent), str(bundle)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=WAIT_S * 5)
    assert done.returncode == 0, done.stderr[-3000:]  # an interrupt may be told of there, where Python ignores it
    return done.stdout
