"""ParallelLoader: when stages load and run, called from many threads, closed and interrupted, and with faults."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import runtime_models
from runtime_models import Script, feeds, loader_with

from splitload import ParallelLoader
from splitload.base.errors import BundleError, StageError, UsageError
from splitload.runtime.pool import LoadingPool

WAIT_S = 60


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def open_script() -> Script:
    return Script(opened=True)


@pytest.fixture(scope="module")
def session(chain_model: Path) -> Any:
    return ort.InferenceSession(chain_model, providers=["CPUExecutionProvider"])


def release(script: Script) -> None:
    for gate in [*script.gates, script.upgrade_gate]:
        gate.set()


def test_answers_like_the_model(chain_bundle: Path, session: Any) -> None:
    with ParallelLoader(chain_bundle) as model:
        for got, expected in zip(model.run(None, feeds()), session.run(None, feeds()), strict=True):
            assert np.allclose(got, expected, atol=1e-5)


def test_returns_before_anything_is_loaded(chain_bundle: Path, script: Script) -> None:
    with script.loader(chain_bundle) as model:
        assert not model.ready
        assert model.timeline.tasks == ()
        release(script)


def test_runs_the_first_stage_as_soon_as_it_is_there(chain_bundle: Path, script: Script) -> None:
    with script.loader(chain_bundle, threads=1) as model, ThreadPoolExecutor(1) as pool:
        script.gates[0].set()
        script.gates[1].set()
        assert script.started[2].wait(WAIT_S)
        early = pool.submit(model.run, ["early"], feeds())
        assert early.result(WAIT_S)[0].shape == (2, runtime_models.WIDTH)  # without the stages it does not need
        whole = pool.submit(model.run, None, feeds())
        assert not model.ready
        assert {task.stage for task in model.timeline.tasks if task.kind == "infer"} <= {0, 1}
        release(script)
        assert len(whole.result(WAIT_S)) == 2


def test_without_overlap_waits_for_all_stages(chain_bundle: Path, script: Script) -> None:
    with script.loader(chain_bundle, overlap=False, upgrade=False) as model, ThreadPoolExecutor(1) as pool:
        script.gates[0].set()
        script.gates[1].set()
        running = pool.submit(model.run, ["early"], feeds())
        assert script.started[3].wait(WAIT_S)
        assert not [task for task in model.timeline.tasks if task.kind == "infer"]
        release(script)
        running.result(WAIT_S)
        loaded_s = model.timeline.load_makespan_s
        assert all(task.start_s >= loaded_s for task in model.timeline.tasks if task.kind == "infer")


@pytest.mark.parametrize("threads", [4, 9])
def test_case_1_all_stages_load_at_once(chain_bundle: Path, script: Script, threads: int) -> None:
    with script.loader(chain_bundle, threads=threads) as model:
        assert model.threads == 4
        assert all(started.wait(WAIT_S) for started in script.started)  # although none has ended
        release(script)
        assert model.wait(WAIT_S)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_case_2_further_stages_wait_for_a_thread(chain_bundle: Path, script: Script, threads: int) -> None:
    with script.loader(chain_bundle, threads=threads) as model:
        assert all(started.wait(WAIT_S) for started in script.started[:threads])
        assert not script.started[threads].is_set()
        script.gates[0].set()
        assert script.started[threads].wait(WAIT_S)
        release(script)
        assert model.wait(WAIT_S)
        assert {task.thread for task in model.timeline.tasks if task.kind == "load"} <= set(range(threads))


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_wrong_threads_are_refused(chain_bundle: Path, threads: Any) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        ParallelLoader(chain_bundle, threads=threads)


def test_called_from_many_threads_while_loading(chain_bundle: Path, script: Script, session: Any) -> None:
    callers = 12
    barrier = threading.Barrier(callers + 1)

    def call(seed: int) -> list[Any]:
        barrier.wait(WAIT_S)
        return model.run(None, feeds(rows=seed + 1, seed=seed))

    with script.loader(chain_bundle, threads=2) as model, ThreadPoolExecutor(callers) as pool:
        calls = [pool.submit(call, seed) for seed in range(callers)]
        barrier.wait(WAIT_S)
        for gate in script.gates:
            gate.set()
        answers = [call.result(WAIT_S) for call in calls]
        again = [model.run(None, feeds(rows=seed + 1, seed=seed)) for seed in range(callers)]
        release(script)
    for seed in range(callers):
        for got, same, stock in zip(
            answers[seed], again[seed], session.run(None, feeds(rows=seed + 1, seed=seed)), strict=True
        ):
            assert np.array_equal(got, same)
            assert np.allclose(got, stock, atol=1e-5)


def test_close_during_load_ends_calls_and_loads_no_more(chain_bundle: Path, script: Script) -> None:
    model = script.loader(chain_bundle, threads=1)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(model.run, None, feeds())
        assert script.started[0].wait(WAIT_S)
        closing = pool.submit(model.close)
        with pytest.raises(StageError, match="closed"):
            running.result(WAIT_S)
        release(script)
        closing.result(WAIT_S)
    assert not script.started[1].is_set()
    assert not model.ready


def test_close_during_run_gives_a_result_or_an_error(chain_bundle: Path) -> None:
    for _ in range(20):
        model = ParallelLoader(chain_bundle)
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(model.run, None, feeds()) for _ in range(4)]
            model.close()
            for call in calls:
                error = call.exception(WAIT_S)
                assert error is None or (isinstance(error, StageError) and "closed" in str(error))


def test_after_close_every_call_raises(chain_bundle: Path) -> None:
    with ParallelLoader(chain_bundle) as model:
        model.run(None, feeds())
    model.close()  # again does nothing
    with pytest.raises(StageError, match="closed"):
        model.run(None, feeds())
    with pytest.raises(StageError, match="closed"):
        model.wait()
    assert not model.ready
    assert model.timeline.ttfo_s > 0


def test_first_failure_cancels_the_rest_and_every_call_raises_it(chain_bundle: Path, script: Script) -> None:
    script.failures[1] = RuntimeError("no such\nluck")
    script.gates[0].set()
    model = script.loader(chain_bundle, threads=1)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(model.run, None, feeds()), pool.submit(model.run, ["early"], feeds())]
        waits = [pool.submit(model.wait)]
        assert script.started[1].wait(WAIT_S)
        release(script)
        for call in [*calls, *waits, pool.submit(model.run, None, feeds()), pool.submit(model.wait, "upgraded")]:
            with pytest.raises(StageError, match=r"stage 2 .* no such luck") as caught:
                call.result(WAIT_S)
            assert caught.value.__cause__ is script.failures[1]
    assert not script.started[2].is_set()
    model.close()


def test_a_corrupt_stage_file_is_an_error(own_bundle: Path) -> None:
    graph = next(path for path in sorted(own_bundle.glob("*-01-*.onnx")))
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    with ParallelLoader(own_bundle) as model, pytest.raises(StageError, match=r"stage 2 of .*cannot be loaded"):
        model.run(None, feeds())
    with pytest.raises(BundleError, match="SHA-256"):
        ParallelLoader(own_bundle, verify="hashes")


def test_a_bundle_replaced_meanwhile_is_never_mixed_in(chain_model: Path, own_bundle: Path, script: Script) -> None:
    other = onnx.load(chain_model)
    for tensor in other.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 2, tensor.name))
    onnx.save(other, own_bundle.with_name("other.onnx"))
    with script.loader(own_bundle, threads=1) as model:
        script.gates[0].set()
        assert script.started[1].wait(WAIT_S)  # the first stage is open, the others are not
        runtime_models.bundle(own_bundle.with_name("other.onnx"), own_bundle)
        release(script)
        with pytest.raises(StageError, match=r"stage 2 of .*cannot be loaded"):
            model.run(None, feeds())


def test_an_upgrade_never_takes_stages_of_another_bundle(chain_model: Path, own_bundle: Path) -> None:
    other = onnx.load(chain_model)
    for tensor in other.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 2, tensor.name))
    onnx.save(other, own_bundle.with_name("other.onnx"))
    with ParallelLoader(own_bundle) as model:
        before = model.run(["early"], feeds())[0]
        model.wait()
        runtime_models.bundle(own_bundle.with_name("other.onnx"), own_bundle)
        assert model.wait("upgraded", WAIT_S)
        assert np.allclose(model.run(["early"], feeds())[0], before, atol=1e-5)


def test_the_caller_may_change_folder(own_bundle: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own_bundle.parent)
    with script.loader(own_bundle.name) as model:
        monkeypatch.chdir("/")
        release(script)
        assert model.wait("loaded", WAIT_S)


def test_a_progress_callback_that_exits_stops_nothing(
    chain_bundle: Path, open_script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda report: seen.append(report.exc_type))
    with open_script.loader(chain_bundle, threads=1, on_progress=lambda *_: sys.exit(3)) as model:
        assert model.wait("loaded", WAIT_S)
    assert seen == [SystemExit]


def test_wait(chain_bundle: Path, script: Script) -> None:
    with script.loader(chain_bundle) as model:
        assert not model.wait(0)
        assert not model.wait(timeout=0)
        assert not model.wait("upgraded", 0)
        for gate in script.gates:
            gate.set()
        assert model.wait("loaded", WAIT_S)
        assert model.wait()
        assert model.ready
        assert not model.wait("upgraded", 0)
        script.upgrade_gate.set()
        assert model.wait("upgraded", WAIT_S)
        assert sorted(script.upgrades) == [0, 1, 2, 3]
        with pytest.raises(UsageError, match="wait takes"):
            model.wait("done")


def test_timeline(chain_bundle: Path) -> None:
    with ParallelLoader(chain_bundle, threads=2) as model:
        model.run(None, feeds())
        first = model.timeline
        model.run(None, feeds())
        assert model.timeline == first
    assert first.source == "measured"
    for kind in ("load", "infer"):
        assert sorted(task.stage for task in first.tasks if task.kind == kind) == [0, 1, 2, 3]
    assert [task.start_s for task in first.tasks] == sorted(task.start_s for task in first.tasks)
    load = {task.stage: task for task in first.tasks if task.kind == "load"}
    infer = {task.stage: task for task in first.tasks if task.kind == "infer"}
    for stage in range(4):
        assert 0 < load[stage].start_s <= load[stage].end_s <= infer[stage].start_s <= infer[stage].end_s
        assert stage == 0 or infer[stage - 1].end_s <= infer[stage].start_s
    assert first.ttfo_s >= first.load_makespan_s > 0


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
    real, starts = threading.Thread.start, []
    loader = loader_with(pool=LoadingPool(2))

    def start(thread: threading.Thread) -> None:
        starts.append(thread)
        if len(starts) > left:
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
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
from splitload.runtime.session import open_session as real
def slow(graph, **options):  # is inside onnxruntime for as long as the interpreter takes to exit
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


@pytest.mark.parametrize("blocked", ["", "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])"])
@pytest.mark.parametrize("call", ["model.wait()", RUN])
def test_interrupt_while_waiting_does_not_hang_at_exit(chain_bundle: Path, call: str, blocked: str) -> None:
    code = f"""
import faulthandler, signal, sys, threading, numpy as np
from splitload import ParallelLoader
from splitload.runtime.opening import LoadingParts
faulthandler.dump_traceback_later({WAIT_S}, exit=True)
loading, gate = threading.Event(), threading.Event()
def stuck(graph, **options):
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
