"""The command line: every command with good input, one clear line for bad input, and interrupts that leave nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import runtime_models
from command_line import Run, json_of

import splitload.runtime.variants
from splitload import devices
from splitload.base.machine import cpu_architecture
from splitload.bundle.manifest import MANIFEST
from splitload.bundle.read import read_manifest
from splitload.cli import main
from splitload.plan.objectives import OF_ONE_DEVICE
from splitload.planner.agents import AGENTS, BASELINES, LEARNERS


def test_train_says_that_it_replaces_a_bundle(cli: Run, chain_model: Path) -> None:
    words = ["train", chain_model, "--device", "s20", "--split-points", "2", "-o", "out.splitload"]
    assert "\nbundle: out.splitload\n" in cli(*words)[1]
    assert "\nbundle: out.splitload, in the place of the one that was there\n" in cli(*words)[1]
    assert json_of(cli(*words, "--json"))["replaced"] is True


@pytest.mark.parametrize("objective", OF_ONE_DEVICE)
@pytest.mark.parametrize("agent", AGENTS)
def test_train_json(cli: Run, chain_model: Path, agent: str, objective: str) -> None:
    words = ["train", chain_model, "--device", "s20", "-o", "out.splitload", "--agent", agent]
    found = json_of(cli(*words, "--objective", objective, "--max-stages", "3", "--episodes", "300", "--json"))
    keys = [
        "model",
        "device",
        "objective",
        "plan",
        "found_by",
        "value",
        "ttfo_s",
        "gain",
        "trial",
        "trained",
        "episodes",
    ]
    assert list(found) == [*keys, "search_s", "agreement", "bundle", "replaced"]
    assert found["replaced"] is False
    assert found["trained"] is None
    assert found["trial"] is None
    assert list(found["plan"]) == ["num_stages", "split_points", "num_blocks"]
    baselines = ["exact", "annealing", "uniform_bytes", "uniform_blocks", "random"]
    assert list(found["value"]) == ["learned", *baselines, "exact_bound"]
    assert found["value"]["exact_bound"] == found["value"]["exact"], "so small a model is proved"
    assert list(found["ttfo_s"]) == ["predicted", "measured"]
    assert (found["model"], found["device"], found["objective"]) == (str(chain_model), "s20", objective)
    assert found["ttfo_s"]["measured"] is None
    learns = agent in LEARNERS
    assert found["found_by"] == agent or (agent == "best" and found["found_by"] in ("q-learning", *BASELINES))
    assert (found["value"]["learned"] is not None) == learns == (found["episodes"] > 0)
    manifest = read_manifest(Path(found["bundle"]), "hashes")
    assert (manifest.plan["agent"], manifest.plan["found_by"]) == (agent, found["found_by"])
    assert manifest.plan["values_s"]["learned"] == found["value"]["learned"]
    assert len(manifest.variants[0].stages) == found["plan"]["num_stages"] == len(found["plan"]["split_points"]) + 1


def test_train_says_where_the_best_plan_is_not_proved(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    s20 = (Path(devices.__file__).parent / "s20.toml").read_text(encoding="utf-8")
    Path("two.toml").write_text(s20.replace("threads = 8", "threads = 2"), encoding="utf-8")
    words = ["train", "--device", "two.toml", "--agent", "annealing", "--objective", "ttfo", "--max-stages", "4"]
    code, out, _ = cli(*words)
    assert code == 0
    assert "÷ exact" in out
    assert "best known" not in out
    monkeypatch.setattr("splitload.planner.rivals.EXACT_LIMIT_S", 0.0)
    code, out, _ = cli(*words, "-o", "other.splitload")
    assert code == 0
    assert "÷ best known" in out
    assert "best known, at most " in out


def test_train_shows_plan_baselines_schedule_and_bundle(cli: Run) -> None:
    code, out, _ = cli("train", "--device", "s20", "--agent", "exact", "--max-stages", "4")
    assert code == 0
    for text in ("mobilenet_v1 on s20: ", " blocks in 4 stages", "uniform bytes", "load 0 |", "infer |", "simulated"):
        assert text in out
    *lines, bundle, gain = out.splitlines()
    assert bundle == "bundle: mobilenet_v1.splitload"
    assert max(map(len, lines)) <= 80
    assert gain.startswith("First output after ")
    assert gain.endswith(" times as long (simulated).")
    assert read_manifest(Path("mobilenet_v1.splitload"), "hashes").device == "s20"


@pytest.mark.usefixtures("few_samples")
def test_train_profile_and_bench_on_this_host(cli: Run, chain_model: Path) -> None:
    profile = json_of(cli("profile", chain_model, "--device", "host", "-o", "host.json", "--json"))
    assert profile["source"] == "measured"
    found = json_of(cli("train", chain_model, "--device", "host", "-o", "out.splitload", "--json"))
    assert found["ttfo_s"]["measured"] > 0
    assert [variant.kind for variant in read_manifest(Path("out.splitload")).variants] == ["native", "portable"]
    same = json_of(cli("train", chain_model, "--device", "host.json", "-o", "out.splitload", "--json"))
    assert same["value"]["exact"] > 0
    bench = json_of(cli("bench", chain_model, "--bundle", "out.splitload", "--runs", "1", "--json"))
    assert {"stock", "tuned", "splitload"} <= set(bench["arms"])
    for arm in bench["arms"].values():
        assert list(arm["ttfo_s"]) == ["median", "min", "max"]
    assert bench["provenance"]["command"].startswith("splitload bench")
    code, out, _ = cli("bench", chain_model, "--runs", "1", "--arms", "stock,splitload")
    assert code == 0
    assert "stock÷arm" in out


def test_profile(cli: Run, chain_model: Path) -> None:
    profile = json_of(cli("profile", chain_model, "--device", "s20", "-o", "s20.json", "--json"))
    assert json.loads(Path("s20.json").read_text())["model"] == profile["model"] == "chain"
    assert cli("train", chain_model, "--device", "s20.json", "--agent", "exact")[0] == 0
    code, out, _ = cli("profile", chain_model, "--device", "s20")
    assert code == 0
    assert "whole model: load" in out


@pytest.mark.parametrize("command", ["inspect", "run"])
def test_who_gets_the_portable_graph_is_told(
    cli: Run, native_bundle: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(splitload.runtime.variants, "cpu_architecture", lambda: "pdp11")
    for words in ((command, native_bundle), (command, native_bundle, "--json")):
        code, out, err = cli(*words)
        assert code == 0
        assert err.count("\n") == 1
        assert f"'splitload specialize {native_bundle}'" in err
    found = json.loads(out)
    assert found.get("here", found)["why_portable"] == err.strip()


def test_inspect_verify_and_run(cli: Run, chain_bundle: Path) -> None:
    inspected = json_of(cli("inspect", chain_bundle, "--json"))
    here = {"cpu": cpu_architecture(), "onnxruntime": ort.__version__, "variant": 0, "why_portable": None}
    sealed = json.loads((chain_bundle / MANIFEST).read_text())
    assert inspected == {**{key: sealed[key] for key in sealed if key != "sha256"}, "here": here}
    assert json_of(cli("verify", chain_bundle, "--json"))["verified"] is True
    np.save("x.npy", runtime_models.feeds(rows=5)["x"])
    found = json_of(cli("run", chain_bundle, "--input", "x=x.npy", "--threads", "3", "-o", "saved", "--json"))
    assert found["outputs"]["y"] == {"type": "float32", "shape": [5, runtime_models.WIDTH]}
    assert found["threads"] == 3
    assert np.load("saved/y.npy").shape == (5, runtime_models.WIDTH)
    for command, text in (("inspect", "part of the model"), ("verify", "every hash is right"), ("run", "load 0 |")):
        code, out, err = cli(command, chain_bundle)
        assert (code, err) == (0, "")
        assert text in out


def test_devices_and_zoo(cli: Run) -> None:
    found = [device["name"] for device in json_of(cli("devices", "--json"))["devices"]]
    assert found == list(devices.names())
    assert {"host", "pixel6", "redmi9", "rpi4", "s20"} <= set(found)
    *lines, paper = [line for line in cli("devices")[1].splitlines() if line.strip()]
    assert [line.split()[0] for line in lines[3:]] == found  # none takes two lines
    assert paper.startswith('Table 1 is that of "Reinforcement Learning Based Asymmetrical DNN Modularization for ')
    assert "zoo:mobilenet_v1" in [model["name"] for model in json_of(cli("zoo", "--json"))["models"]]
    assert "zoo:mobilenet_v1" in cli("zoo")[1]


@pytest.mark.parametrize(
    ("command", "text"),
    [("train", "package.module:factory (default: zoo:mobilenet_v1)"), ("cache", "{list,clear} (default: list)")],
)
def test_help_tells_defaults_and_choices(capsys: pytest.CaptureFixture[str], command: str, text: str) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert text in " ".join(capsys.readouterr().out.split())
