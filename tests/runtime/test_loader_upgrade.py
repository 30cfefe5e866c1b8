"""ParallelLoader after the first answer: upgrades, few threads, progress, and the exit of the interpreter."""

from __future__ import annotations

import _thread
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_models import Script, feeds, loader_with

from splitload import ParallelLoader
from splitload.base.errors import StageError
from splitload.runtime.pool import LoadingPool

pytestmark = pytest.mark.usefixtures("engine")

WAIT_S = 60


def release(script: Script) -> None:
    for gate in [*script.gates, script.upgrade_gate]:
        gate.set()


def test_upgrade_swaps_sessions_between_runs(chain_bundle: Path, script: Script) -> None:
    for gate in script.gates:
        gate.set()
    stop = threading.Event()

    def call() -> list[list[Any]]:
        answers = [model.run(None, feeds())]
        while not stop.is_set():
            answers.append(model.run(None, feeds()))
        return [*answers, model.run(None, feeds())]

    with script.loader(chain_bundle) as model, ThreadPoolExecutor(4) as pool:
        expected = model.run(None, feeds())
        before = list(model._loading.values)
        calls = [pool.submit(call) for _ in range(4)]
        script.upgrade_gate.set()
        assert model.wait("upgraded", WAIT_S)
        stop.set()
        for done in calls:
            for answer in done.result(WAIT_S):
                assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(answer, expected, strict=True))
        assert all(new is not old for new, old in zip(model._loading.values, before, strict=True))


def test_no_upgrade_on_request(chain_bundle: Path, open_script: Script) -> None:
    with open_script.loader(chain_bundle, upgrade=False) as model:
        model.run(None, feeds())
        assert model.wait("upgraded", WAIT_S)
    assert open_script.upgrades == []


def test_a_failing_upgrade_keeps_the_stage(chain_bundle: Path, script: Script) -> None:
    for gate in script.gates:
        gate.set()
    with script.loader(chain_bundle) as model:
        model.wait()
        before = list(model._loading.values)
        script.failures[2] = RuntimeError("no memory")
        script.upgrade_gate.set()
        assert model.wait("upgraded", WAIT_S)
        assert [new is old for new, old in zip(model._loading.values, before, strict=True)] == [
            False,
            False,
            True,
            False,
        ]
        model.run(None, feeds())


def test_close_during_upgrade(chain_bundle: Path, script: Script) -> None:
    for gate in script.gates:
        gate.set()
    model = script.loader(chain_bundle)
    model.run(None, feeds())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(model.wait, "upgraded")
        closing = threading.Thread(target=model.close)
        closing.start()
        with pytest.raises(StageError, match="closed"):
            waiting.result(WAIT_S)
        script.upgrade_gate.set()
        closing.join(WAIT_S)
    assert script.upgrades in ([], [0])


@pytest.mark.parametrize("left", [0, 1, 3])
def test_system_with_few_threads_left(chain_bundle: Path, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    starts = []
    loader = loader_with(pool=LoadingPool(2))

    def limited(real: Callable[..., Any]) -> Callable[..., Any]:
        def start(*arguments: Any) -> Any:
            starts.append(arguments)
            if len(starts) > left:
                raise RuntimeError("can't start new thread")
            return real(*arguments)

        return start

    monkeypatch.setattr(_thread, "start_new_thread", limited(_thread.start_new_thread))
    monkeypatch.setattr(threading.Thread, "start", limited(threading.Thread.start))
    if left == 0:
        with pytest.raises(StageError, match="no thread left"):
            loader(chain_bundle, threads=3)
        return
    with loader(chain_bundle, threads=3) as model:
        assert len(model.run(None, feeds())) == 2  # although the upgrade finds no thread
        assert model.wait("upgraded", WAIT_S)


def test_progress_is_reported(chain_bundle: Path) -> None:
    seen: list[tuple[int, int]] = []
    with ParallelLoader(chain_bundle, threads=1, on_progress=lambda *step: seen.append(step)) as model:
        model.wait()
        deadline = time.monotonic() + WAIT_S
        while len(seen) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_progress_that_raises_is_reported_once_and_loading_goes_on(
    chain_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)

    def progress(loaded: int, total: int) -> None:
        raise ValueError(f"at {loaded} of {total}")

    with ParallelLoader(chain_bundle, threads=1, on_progress=progress) as model:
        assert len(model.run(None, feeds())) == 2
    assert [str(args.exc_value) for args in reported] == ["at 1 of 4"]


def test_progress_may_close(chain_bundle: Path) -> None:
    started = threading.Event()

    def progress(loaded: int, total: int) -> None:
        started.wait(WAIT_S)
        model.close()

    model = ParallelLoader(chain_bundle, threads=2, on_progress=progress)
    started.set()
    model.close()
    assert not model._loading._inside
    with pytest.raises(StageError, match="closed"):
        model.run(None, feeds())


RUN = "model.run(None, {'x': np.ones((1, 16), 'f'), 'z': np.ones(16, 'f')})"


EXIT = """
import sys, threading, numpy as np
from splitload import ParallelLoader
from splitload.runtime.opening import LoadingParts
def slow(real, graph, **options):  # is inside onnxruntime while the interpreter exits
    print("loading", flush=True)
    session = None
    for _ in range(50):
        session = real(graph, **options)
    return session
class Loader(ParallelLoader):
    _parts = LoadingParts(open_session=slow)
model = Loader(sys.argv[1], threads=4)
"""


@pytest.mark.parametrize("last", ["", RUN])
def test_exit_with_an_open_loader_is_clean(chain_bundle: Path, last: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXIT + last, str(chain_bundle)], capture_output=True, text=True, timeout=WAIT_S
    )
    assert (done.returncode, done.stderr) == (0, "")


DROPPED = """
import sys, threading, numpy as np
from splitload import ParallelLoader
from splitload.runtime.opening import LoadingParts
inside = threading.Event()
def slow(real, graph, *, prepack=False, **options):  # is inside onnxruntime while the interpreter exits
    if prepack:
        inside.set()
    for _ in range(50 if prepack else 1):
        session = real(graph, prepack=prepack, **options)
    return session
class Loader(ParallelLoader):
    _parts = LoadingParts(open_session=slow)
def answer():
    model = Loader(sys.argv[1])
    return model.run(None, {'x': np.ones((1, 16), 'f'), 'z': np.ones(16, 'f')})
answer()
assert inside.wait(60)
"""


def test_exit_after_a_loader_was_dropped_while_it_is_upgraded_is_clean(chain_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DROPPED, str(chain_bundle)], capture_output=True, text=True, timeout=WAIT_S
    )
    assert (done.returncode, done.stderr) == (0, "")


LATE = """
import atexit, sys, threading
import splitload.runtime.pool
exits, done = threading.Event(), threading.Event()
@atexit.register  # called after all is closed, and before the pool's own waits for threads
def last():
    exits.set()
    assert done.wait(60)
    print(made)
import numpy as np
from splitload import ParallelLoader
from splitload.runtime.opening import LoadingParts
from splitload.runtime.upgrade import Upgrade
made, work = [], Upgrade._work
def late(self):
    assert exits.wait(60)
    work(self)
    done.set()
Upgrade._work = late
def counted(real, graph, *, prepack=False, **options):
    made.append(prepack)
    return real(graph, prepack=prepack, **options)
class Loader(ParallelLoader):
    _parts = LoadingParts(open_session=counted)
Loader(sys.argv[1]).run(None, {'x': np.ones((1, 16), 'f'), 'z': np.ones(16, 'f')})
"""


def test_an_upgrade_whose_thread_comes_to_run_when_the_interpreter_exits_makes_nothing(chain_bundle: Path) -> None:
    """The process would end while the runtime makes a session, and calls back into an interpreter that is gone."""
    done = subprocess.run(
        [sys.executable, "-c", LATE, str(chain_bundle)], capture_output=True, text=True, timeout=WAIT_S * 2
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[False, False, False, False]\n", "")


@pytest.mark.parametrize("blocked", ["", "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])"])
@pytest.mark.parametrize("call", ["model.wait()", RUN])
def test_interrupt_while_waiting_does_not_hang_at_exit(chain_bundle: Path, call: str, blocked: str) -> None:
    code = f"""
import faulthandler, signal, sys, threading, numpy as np
from splitload import ParallelLoader
from splitload.runtime.opening import LoadingParts
faulthandler.dump_traceback_later({WAIT_S}, exit=True)
loading, gate = threading.Event(), threading.Event()
def stuck(real, graph, **options):
    loading.set()
    gate.wait()
    raise RuntimeError("woken")
class Loader(ParallelLoader):
    _parts = LoadingParts(open_session=stuck)
try:
    model = Loader(sys.argv[1], threads=1)
    loading.wait()
    {blocked}
    print("waiting", flush=True)
    {call}
except KeyboardInterrupt:
    gate.set()
    print("interrupted", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(chain_bundle)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=2 * WAIT_S)
    assert (process.returncode, out, err) == (0, "interrupted\n", "")
