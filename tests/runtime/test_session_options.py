"""What callers say in `sess_options` and `providers` holds for every stage, or is refused in one line."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import runtime_models
from runtime_models import feeds

from splitload import ParallelLoader
from splitload.base.errors import UsageError
from splitload.runtime.options import CallerOptions

WAIT_S = 60
CPU = "CPUExecutionProvider"


def options(**values: Any) -> ort.SessionOptions:
    made = ort.SessionOptions()
    for name, value in values.items():
        setattr(made, name, value)
    return made


class Opened:
    """Keeps every session that a loader opens, upgrades included."""

    def __init__(self) -> None:
        self.sessions: list[Any] = []
        self.loader = runtime_models.loader_with(open_session=self)

    def __call__(self, open_session: Any, graph: Path, **named: Any) -> Any:
        self.sessions.append(open_session(graph, **named))
        return self.sessions[-1]


SETTINGS: dict[str, Any] = {
    "intra_op_num_threads": 1,
    "inter_op_num_threads": 3,
    "log_severity_level": 2,
    "log_verbosity_level": 1,
    "logid": "a client's",
    "enable_cpu_mem_arena": False,
    "use_deterministic_compute": True,
    "execution_mode": ort.ExecutionMode.ORT_PARALLEL,
    "execution_order": ort.ExecutionOrder.PRIORITY_BASED,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_holds_for_every_stage_and_the_upgrade(native_bundle: Path, name: str) -> None:
    opened = Opened()
    given = options(**{name: SETTINGS[name]})
    given.add_session_config_entry("session.intra_op.allow_spinning", "0")
    given.add_session_config_entry("session.intra_op.spin_duration_us", "7")
    with opened.loader(native_bundle, given) as model:
        model.run(None, feeds())
        assert model.wait("upgraded", WAIT_S)
        told = model.get_session_options()
    upgrades = sum(stage.upgrade for stage in model.variant.stages)
    assert len(opened.sessions) == len(model.variant.stages) + upgrades
    assert upgrades
    for each in (*(session.get_session_options() for session in opened.sessions), told):
        assert getattr(each, name) == SETTINGS[name]
        assert each.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert each.get_session_config_entry("session.intra_op.spin_duration_us") == "7"


def test_the_options_of_the_caller_are_not_changed(native_bundle: Path) -> None:
    given = options()
    before = {name: getattr(given, name) for name in dir(given) if not callable(getattr(given, name))}
    with ParallelLoader(native_bundle, given) as model:
        model.wait("upgraded", WAIT_S)
    assert {name: getattr(given, name) for name in before} == before
    with pytest.raises(RuntimeError):
        given.get_session_config_entry("session.disable_prepacking")


THREADS = """
import sys, threading, time
from pathlib import Path
import onnxruntime as ort
sys.path.insert(0, sys.argv[1])
import runtime_models
from splitload.runtime.pool import LoadingPool

ParallelLoader = runtime_models.loader_with(pool=LoadingPool(idle_s=0.01))
before = len(list(Path("/proc/self/task").iterdir())) - threading.active_count()
options = ort.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
with ParallelLoader(sys.argv[2], options) as model:
    model.run(None, runtime_models.feeds())
    model.wait("upgraded")
    least, samples = sys.maxsize, 0
    while samples < 20:  # threads of Python's end by themselves, and a moment after they are said to have ended
        time.sleep(0.01)
        if threading.active_count() == 1:
            samples += 1
            least = min(least, len(list(Path("/proc/self/task").iterdir())) - 1 - before)
    print(least)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not list threads")
def test_threads_are_as_few_as_the_caller_says(native_bundle: Path) -> None:
    """A session of n inference threads starts n - 1: the thread that calls is one of them."""
    counts = {}
    for number in ("1", "3"):
        words = [str(Path(runtime_models.__file__).parent), str(native_bundle), number]
        done = subprocess.run([sys.executable, "-c", THREADS, *words], capture_output=True, text=True, timeout=WAIT_S)
        assert done.returncode == 0, done.stderr
        counts[number] = int(done.stdout)
    sessions = 4 + 1  # the stages' and the stand-in
    assert counts["3"] - counts["1"] == 2 * sessions
    assert counts["1"] <= 1  # the runtime may have a thread of its own, whatever the sessions have


def test_prepacking_that_is_switched_off_stays_off(native_bundle: Path) -> None:
    opened = Opened()
    given = options()
    given.add_session_config_entry("session.disable_prepacking", "1")
    with opened.loader(native_bundle, given) as model:
        model.run(None, feeds())
        assert model.wait("upgraded", WAIT_S)
    assert len(opened.sessions) == len(model.variant.stages)
    assert all(
        each.get_session_options().get_session_config_entry("session.disable_prepacking") == "1"
        for each in opened.sessions
    )


def test_a_format_of_model_files_is_not_the_callers_to_choose(native_bundle: Path) -> None:
    given = options()
    given.add_session_config_entry("session.load_model_format", "ONNX")  # native stages are in the runtime's own
    with ParallelLoader(native_bundle, given) as model:
        assert model.variant.kind == "native"
        assert len(model.run(None, feeds())) == 2


@pytest.mark.parametrize("stages", [1, 4])
def test_open_sizes_are_fixed_by_name(chain_model: Path, tmp_path: Path, stages: int) -> None:
    given = options()
    given.add_free_dimension_override_by_name("n", 3)
    given.add_free_dimension_override_by_name("nowhere", 9)
    stock = ort.InferenceSession(chain_model, given, providers=[CPU])
    bundle = runtime_models.bundle(chain_model, tmp_path / "model.splitload", stages)
    with ParallelLoader(bundle, given) as model:
        for told, same in ((model.get_inputs(), stock.get_inputs()), (model.get_outputs(), stock.get_outputs())):
            assert [str(each) for each in told] == [str(each) for each in same]
        np.testing.assert_allclose(model.run(None, feeds(3))[0], stock.run(None, feeds(3))[0], atol=1e-5)
        for run in (model.run, stock.run):
            with pytest.raises(Exception, match="dimensions") as caught:
                run(None, feeds(2))
            assert type(caught.value).__name__ == "InvalidArgument"


def by_denotation() -> ort.SessionOptions:
    made = options()
    made.add_free_dimension_override_by_denotation("DATA_BATCH", 3)
    return made


def with_weights() -> ort.SessionOptions:
    made = options()
    made.add_external_initializers(["w0"], [ort.OrtValue.ortvalue_from_numpy(np.ones((16, 16), np.float32))])
    return made


def with_providers() -> ort.SessionOptions:
    made = options()
    made.set_provider_selection_policy(ort.OrtExecutionProviderDevicePolicy.PREFER_CPU)
    return made


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "profiling": ({"sess_options": options(enable_profiling=True)}, "a stock session profiles the model"),
    "optimised model": ({"sess_options": options(optimized_model_filepath="m.onnx")}, "with a stock session"),
    "denotation": ({"sess_options": by_denotation()}, "use add_free_dimension_override_by_name"),
    "weights": ({"sess_options": with_weights()}, "weights and providers are fixed in a bundle"),
    "choice of providers": ({"sess_options": with_providers()}, f"give providers=\\['{CPU}'\\]"),
    "only what is not there": ({"providers": ["CUDAExecutionProvider"]}, f"a bundle needs '{CPU}' among them"),
    "a name": ({"providers": CPU}, "providers is a list"),
    "settings in the model": ({"read_config_from_model": 1}, "give the settings as sess_options"),
    "optimisers": ({"disabled_optimizers": ["GemmActivationFusion"]}, "leave it out"),
}


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize(("given", "cure"), REFUSED.values(), ids=REFUSED)
def test_what_a_bundle_cannot_do_is_refused_in_one_line(
    chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], cure: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=cure) as caught:
        ParallelLoader(chain_bundle, **given)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())  # neither a profile nor a model was written


def test_a_provider_that_is_not_there_is_warned_of_and_left_out(chain_bundle: Path) -> None:
    with pytest.warns(UserWarning, match="'CUDAExecutionProvider' is not in available"):
        model = ParallelLoader(chain_bundle, providers=["CUDAExecutionProvider", CPU])
    with model:
        assert model.get_providers() == [CPU]
        assert len(model.run(None, feeds())) == 2


def test_another_provider_that_is_there_is_not_passed_over_silently(
    chain_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with onnxruntime-gpu, where a stock session would compute elsewhere."""
    from onnxruntime.capi import onnxruntime_inference_collection as stock

    monkeypatch.setattr(stock.C, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    with pytest.raises(UsageError, match="not on CUDAExecutionProvider; give providers"):
        ParallelLoader(chain_bundle, providers=["CUDAExecutionProvider", CPU])
    with ParallelLoader(chain_bundle) as model, pytest.raises(UsageError, match="not on CUDAExecutionProvider"):
        model.set_providers(["CUDAExecutionProvider"])


def test_a_level_of_optimisation_that_comes_too_late_is_logged(
    chain_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "splitload")
    levels = ort.GraphOptimizationLevel
    for level in (levels.ORT_ENABLE_ALL, levels.ORT_DISABLE_ALL):
        ParallelLoader(chain_bundle, options(graph_optimization_level=level)).close()
    assert [record.getMessage() for record in caplog.records] == [
        "ORT_DISABLE_ALL has no effect: the graph was optimised when the bundle was made"
    ]


def test_without_options_nothing_is_made_for_them() -> None:
    caller = CallerOptions()
    assert caller.copy() is None
    assert caller.stand_in_made is None
    assert caller.prepacks


def test_settings_of_onnxruntime_that_are_new_are_looked_at() -> None:
    """`docs/drop-in.md` says of each what becomes of it."""
    document = (Path(__file__).parents[2] / "docs" / "drop-in.md").read_text(encoding="utf-8")
    known = ("add_external_initializers_from_files_in_memory", "has_providers", "get_session_config_entry",
             "profile_file_prefix", "set_provider_selection_policy_delegate", "set_ep_context_data_read_func",
             "clear_ep_context_data_read_func")  # fmt: skip
    for name in dir(ort.SessionOptions):
        if not name.startswith("_") and name not in known:
            assert f"`{name}" in document, f"onnxruntime {ort.__version__} has a new setting"


POOL = """
import sys
sys.path.insert(0, sys.argv[1])
import onnxruntime as ort
ort.set_global_thread_pool_sizes(2, 1)
import runtime_models
import splitload.runtime.arena, splitload.runtime.stock
from splitload import ParallelLoader

made, real = [], splitload.runtime.stock.tiny_session


def tiny_session(options, own_threads):
    made.append(real(options, own_threads))
    return made[-1]


splitload.runtime.stock.tiny_session = splitload.runtime.arena.tiny_session = tiny_session
splitload.runtime.stock.first_session()
assert len(made) == 1
options = ort.SessionOptions()
options.use_per_session_threads = False
for kind in ("portable", "native"):
    with ParallelLoader(sys.argv[2], options, specialize="background") as model:
        model.run(None, runtime_models.feeds())
        assert model.wait("specialized", 60)
        assert model.variant.kind == kind, model.variant.kind
assert len(made) == 3, made  # the arena was emptied twice
"""


def test_a_thread_pool_of_the_process_is_used_by_all_sessions(own_bundle: Path) -> None:
    """A session with threads of its own fails there, and what it was made for would not happen, without a word."""
    words = [sys.executable, "-c", POOL, str(Path(runtime_models.__file__).parent), str(own_bundle)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
