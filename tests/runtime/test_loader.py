"""ParallelLoader: when stages load and run, called from many threads, closed and interrupted, and with faults."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import runtime_models
from runtime_models import Script, feeds

from splitload import ParallelLoader
from splitload.base.errors import BundleError, StageError, UsageError
from splitload.runtime.capi.memory import memory_of
from splitload.runtime.capi.tensor import tensor_of

pytestmark = pytest.mark.usefixtures("engine")

WAIT_S = 60


def release(script: Script) -> None:
    for gate in [*script.gates, script.upgrade_gate]:
        gate.set()


@pytest.fixture(scope="module")
def session(chain_model: Path) -> Any:
    return ort.InferenceSession(chain_model, providers=["CPUExecutionProvider"])


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"engine": "c"}, "engine takes 'auto', 'library' or 'python', not 'c'"),
        ({"arrays": "lists"}, "arrays takes 'numpy' or 'buffers', not 'lists'"),
        ({"engine": "library", "library": "missing.so"}, "the engine 'library' cannot be used: 'missing.so' cannot be"),
    ],
)
def test_wrong_engines_are_refused(chain_bundle: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"^{words}"):
        ParallelLoader(chain_bundle, **arguments)


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


def test_an_error_that_is_kept_keeps_no_stage_that_ran(chain_bundle: Path, script: Script) -> None:
    script.failures[1] = OSError("no luck")
    script.gates[0].set()
    with script.loader(chain_bundle, threads=1) as model, ThreadPoolExecutor(1) as pool:
        call = pool.submit(model.run, None, feeds())
        assert script.started[1].wait(WAIT_S)
        first = weakref.ref(model._loading.values[0])
        script.gates[1].set()
        with pytest.raises(StageError, match="no luck") as caught:
            call.result(WAIT_S)
    assert caught.value.__traceback__ is not None
    assert first() is None


def swap_stage_files(bundle: Path) -> None:
    first, second = sorted(bundle.glob("portable-0[12]*.onnx"))
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


@pytest.mark.parametrize("fault", ["corrupt", "swapped"])
def test_a_failed_load_keeps_no_session_until_the_garbage_is_collected(own_bundle: Path, fault: str) -> None:
    if fault == "swapped":
        swap_stage_files(own_bundle)
    else:
        next(own_bundle.glob("portable-02*.onnx")).write_bytes(b"nothing")
    made = []

    def opens(open_session: Any, *values: Any, **options: Any) -> Any:
        session = open_session(*values, **options)
        made.append(weakref.ref(session))
        return session

    gc.disable()
    try:
        model = runtime_models.loader_with(open_session=opens)(own_bundle, threads=1, verify="none")
        with pytest.raises(StageError):
            model.run(None, feeds())
        with model._loading.lock:  # a run may raise the error before all that comes with it is done
            assert [session() for session in made] == [None, None]
    finally:
        gc.enable()


def test_a_corrupt_stage_file_is_an_error(own_bundle: Path) -> None:
    graph = next(path for path in sorted(own_bundle.glob("*-01-*.onnx")))
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    with ParallelLoader(own_bundle) as model, pytest.raises(StageError, match=r"stage 2 of .*cannot be loaded"):
        model.run(None, feeds())
    with pytest.raises(BundleError, match="SHA-256"):
        ParallelLoader(own_bundle, verify="hashes")


def test_a_stage_file_that_is_gone_is_named(own_bundle: Path, script: Script) -> None:
    with script.loader(own_bundle, threads=1) as model:
        for file in own_bundle.glob("*.onnx"):
            file.unlink()
        release(script)
        with pytest.raises(
            StageError, match=r"stage 1 of '.*' cannot be loaded: '.*\.onnx' is missing; copy the bundle"
        ):
            model.run(None, feeds())


def test_stage_files_in_each_others_place_are_a_damaged_bundle(own_bundle: Path) -> None:
    swap_stage_files(own_bundle)
    message = r"does not hold the stage that the manifest says; copy the bundle again"
    with ParallelLoader(own_bundle, verify="none") as model, pytest.raises(StageError, match=message):
        model.run(None, feeds())


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


@pytest.mark.parametrize("arrays", ["numpy", "buffers"])
def test_whatever_has_numbers_in_memory_is_taken(chain_bundle: Path, arrays: Literal["numpy", "buffers"]) -> None:
    """By either engine, and what it gives itself as well."""
    feeds = runtime_models.feeds()
    views = {name: memoryview(value) for name, value in feeds.items()}
    tensors = {name: tensor_of(memory_of(value)) for name, value in feeds.items()}
    with ParallelLoader(chain_bundle, arrays=arrays) as model:
        expected = model.run(None, feeds)
        for given in (views, tensors):
            for output, right in zip(model.run(None, given), expected, strict=True):
                np.testing.assert_array_equal(np.asarray(output), np.asarray(right))
    if arrays == "numpy":
        assert all(output.dtype is np.dtype(np.float32) for output in expected)  # as a session's, not "<f4"
