"""`splitload collaborate`: plans on this machine, and a server in a process of its own that a device shares with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_models import PIXELS, Made, collaboration_in

from splitload.bundle.collaboration import read_collaboration
from splitload.cli import main
from splitload.deploy.collaborator import Collaborator
from splitload.deploy.share_bench import ARMS
from splitload.graphs.here import HERE
from splitload.measure.process import python

FEEDS = {"x": np.random.default_rng(3).standard_normal((1, 3, PIXELS, PIXELS)).astype(np.float32)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return collaboration_in(tmp_path_factory.mktemp("collaboration"))


def test_a_bundle_is_planned_on_two_machines(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(made.graph.path.parents[2]))
    monkeypatch.setattr("splitload.collaborative.planning.MOST_STEPS", 3)
    target = tmp_path / "made.collaboration"
    words = ["collaborate", "plan", str(made.bundle), str(made.bundle.parent / "model.onnx"), "-o", str(target)]
    assert main([*words, "--device", "host", "--server", "host", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["bytes_per_s"] for each in told["plans"]] == [0, 1e6, 2e6, 3e6]
    for each in told["plans"]:
        assert each["predicted_s"] <= min(each["baselines_s"].values())
    assert len(read_collaboration(target).plans) == 4
    for change, message in (
        (["--device", "s20", "--server", "host"], "'s20' is not measured"),
        (["--device", "host", "--server", "host", "--latency-ms", "-1"], "--latency-ms takes milliseconds"),
        (["--device", "host", "--server", "host", "--power", "1,2,3"], "--power and --deadline-ms go together"),
        (
            ["--device", "host", "--server", "host", "--power", "1,2", "--deadline-ms", "9"],
            "--power takes three numbers",
        ),
    ):
        assert main([*words, *change]) == 2
        assert message in capsys.readouterr().err


def test_a_server_in_a_process_of_its_own(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    (expected,) = HERE.run(made.graph.path, ["y"], FEEDS)
    command = python("splitload.__main__", "collaborate", "serve", str(made.bundle), "--port", "0")
    environment = {**os.environ, "SPLITLOAD_CACHE": str(tmp_path / "cache")}
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, encoding="utf-8")
    try:
        assert child.stderr is not None
        address = next(found[0] for line in child.stderr if (found := re.search(r"tls://\S+", line)))
        with Collaborator(made.bundle, address, deadline_s=20.0) as model:
            assert model.wait_for_server(20.0)
            np.testing.assert_allclose(model.run(None, FEEDS)[0], expected, rtol=1e-4, atol=1e-5)
            assert model.last is not None and model.last.by == "both"
        assert main(["collaborate", "bench", str(made.bundle), "--server", address, "--runs", "2", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert {name: len(each) for name, each in told["samples"].items()} == dict.fromkeys(ARMS, 2)
        assert all(each["by"] == "device" for each in told["samples"]["device"])
        assert all(each["by"] == "both" for name in ("server", "layer cut") for each in told["samples"][name])
    finally:
        child.send_signal(signal.SIGTERM)
        said: Any = child.communicate(timeout=20)[1]
    assert child.returncode == 0, said
    assert "is gone" in said
    assert "Traceback" not in said


def test_a_bundle_without_a_collaboration_is_one_line(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    words = ["collaborate", "serve", str(made.bundle), "--collaboration", str(tmp_path / "none")]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.count("\n") <= 2
    assert "'splitload collaborate plan' makes one" in " ".join(error.split())
