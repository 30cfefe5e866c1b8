"""The benchmark: arms in turns, a fresh process for each sample, and a clear error when an arm fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_tools import skip_without
from runtime_models import INPUTS, feeds

from splitload.base.errors import StageError
from splitload.bundle.manifest import TensorSpec
from splitload.measure import __main__ as child
from splitload.measure import fresh, sampling
from splitload.measure.arms import ARMS
from splitload.measure.job import Input, LoadModel
from splitload.measure.sampling import FIGURES, Arm, compare, outputs_of, run_arms, summarize


def test_arms_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def sample(arm: Arm, *_: Any) -> dict[str, float]:
        order.append(arm.name)
        return {"ttfo_s": len(order)}

    monkeypatch.setattr(sampling, "_sample", sample)
    seen: list[tuple[int, int]] = []
    arms = [Arm(name, Path("none")) for name in "abc"]
    samples = run_arms(arms, (), {}, 3, lambda *step: seen.append(step))
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert seen == [(done, 9) for done in range(1, 10)]
    assert samples["a"] == [{"ttfo_s": 1}, {"ttfo_s": 6}, {"ttfo_s": 8}]


def test_every_sample_is_a_fresh_process(
    chain_model: Path, chain_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []
    real = fresh.subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return real(command, **options)

    monkeypatch.setattr(fresh.subprocess, "Popen", start)
    arms = [Arm("stock", chain_model), Arm("splitload", chain_bundle, threads=2)]
    samples = run_arms(arms, INPUTS, feeds(), 1)
    assert len(commands) == 4  # one for the whole process, one for what is measured within
    for (row,) in samples.values():
        assert set(row) <= set(FIGURES)
        assert all(value > 0 for key, value in row.items() if key != "major_faults")
        assert row["process_s"] >= row["ttfo_s"] >= row["first_inference_s"]
        if sys.platform.startswith("linux"):
            assert row["peak_memory_bytes"] >= row["settled_memory_bytes"]


def test_the_tuned_arm_takes_an_optimised_file(chain_bundle: Path) -> None:
    stage = next(chain_bundle.glob("portable-00-*.onnx"))
    row = run_arms([Arm("tuned", stage)], INPUTS[:1], {}, 1)["tuned"][0]  # the stage reads x, made up here
    assert row["ttfo_s"] >= row["load_s"]


def test_peak_memory_is_that_of_the_process_itself(chain_model: Path) -> None:
    ballast = np.ones(60_000_000)  # 480 MB, which a child must not count
    row = run_arms([Arm("stock", chain_model)], INPUTS, feeds(), 1)["stock"][0]
    assert row["peak_memory_bytes"] < ballast.nbytes


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_that_fails(tmp_path: Path, name: str) -> None:
    skip_without(name)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    recipe = {"package": "collections", "name": "OrderedDict", "folder": str(tmp_path)}
    job = {"module": recipe, "cache": str(tmp_path), "weights": str(broken), "batch": {"inputs": [0, 0], "outputs": []}}
    with pytest.raises(StageError, match=rf"^benchmark arm '{name}' failed: .") as caught:
        run_arms([Arm(name, broken, job=job, threads=1)], INPUTS, feeds(), 1)
    assert "\n" not in str(caught.value)


def test_an_arm_that_dies(chain_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StageError, match="the process ended with 1"):
        run_arms([Arm("stock", chain_model)], INPUTS, feeds(), 1)


def test_an_error_of_several_lines_becomes_one(tmp_path: Path) -> None:
    (tmp_path / "lines.py").write_text("raise ValueError('first line\\n\\tsecond line')")
    recipe = {"package": "lines", "name": "x", "folder": str(tmp_path)}
    pytest.importorskip("torch")
    with pytest.raises(StageError, match=r"failed: ValueError: first line second line$"):
        outputs_of(Arm("torch", tmp_path, job={"module": recipe}), (), {})


def test_the_child_answers_by_its_path_and_as_a_module(chain_model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", feeds()["x"])
    np.save(tmp_path / "z.npy", feeds()["z"])
    job = LoadModel("stock", str(chain_model), tuple(Input(name, "", (), f"{name}.npy") for name in "xz"))
    (tmp_path / "job.json").write_text(json.dumps(job.to_json()))
    for start in ([str(child.__file__)], ["-m", "splitload.measure"]):
        command = [sys.executable, *start, str(tmp_path / "job.json"), str(tmp_path)]
        done = subprocess.run(command, input="\n", capture_output=True, text=True, check=True)
        first, answer = done.stdout.splitlines()
        assert first == "first"
        assert json.loads(answer)["steady_runs_s"]


@pytest.mark.parametrize("arm", ["stock", "tuned", "openvino", "ncnn"])
def test_the_child_imports_what_its_engine_needs(arm: str) -> None:
    skip_without(arm)
    code = f"""
import runpy, sys
module = runpy.run_path({str(child.__file__)!r})
module["ARMS"][{arm!r}]({{"arm": {arm!r}, "path": "model", "batch": {{"inputs": []}}}}, {{}})
print([name for name in sys.modules if name.split(".")[0] == "splitload" or name in ("torch", "onnx")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_first_outputs_are_those_of_the_model(chain_model: Path, chain_bundle: Path) -> None:
    stock = outputs_of(Arm("stock", chain_model), INPUTS, feeds())
    assert [output.shape for output in stock] == [(2, 16), (2, 16)]
    assert compare("splitload", stock, outputs_of(Arm("splitload", chain_bundle), INPUTS, feeds())) < 1e-5


def test_inputs_that_no_file_holds_are_made_up() -> None:
    specs = [TensorSpec("x", "tensor(bfloat16)", (2,)), TensorSpec("s", "tensor(string)", (1,))]
    with sampling.saved_inputs(specs, {}) as (folder, inputs):
        assert [(each.name, each.file is None) for each in inputs] == [("x", True), ("s", False)]
        rows = json.loads(json.dumps(LoadModel("stock", "m", inputs).to_json()))["inputs"]
        values = [child._feed(row, str(folder)) for row in rows]
        assert values[0].data_type() == "tensor(bfloat16)"
        assert values[1].tolist() == ["a"]
        assert values[1].dtype == object


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


def test_compare() -> None:
    assert compare("tuned", [floats(1, 2)], [floats(1, 2.0005)]) == pytest.approx(5e-4, rel=1e-3)
    halves = [floats(1, 2).astype(np.float16), floats(1, 2.005).astype(np.float16)]
    assert compare("tuned", halves[:1], halves[1:]) == pytest.approx(5e-3, rel=0.2)
    assert compare("tuned", [floats(1, np.nan, np.inf)], [floats(1, np.nan, np.inf)]) == 0
    assert compare("ncnn", [floats(1, 2)[None]], [floats(1.05, 2)]) == pytest.approx(0.05)
    assert compare("tuned", [np.array(["a"]), None], [np.array(["a"]), None]) == 0
    assert compare("tuned", [], []) == 0


@pytest.mark.parametrize(
    ("expected", "outputs", "message"),
    [
        ([floats(1, 2)], [floats(1, 2.1)], "output 0 differs by 0.1 from stock's, whose largest magnitude is 2"),
        ([floats(1, 2)], [floats(1, np.nan)], "differs by inf"),
        ([floats(1, 2)], [floats(1, 2, 3)], r"gives output 0 of shape \(3,\), stock \(2,\)"),
        ([floats(1, 2)], [], "gives 0 outputs, stock gives 1"),
        ([np.array([1, 2])], [np.array([1, 3])], "output 0 is not that of stock"),
    ],
)
def test_an_arm_that_computes_something_else(expected: list[Any], outputs: list[Any], message: str) -> None:
    with pytest.raises(StageError, match=f"^arm 'tuned' .*{message}"):
        compare("tuned", expected, outputs)


def test_summary() -> None:
    rows = [dict.fromkeys(FIGURES, value) for value in (3.0, 1.0, 2.0)]
    assert summarize(rows)["ttfo_s"] == {"median": 2.0, "min": 1.0, "max": 3.0}
