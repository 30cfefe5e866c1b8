"""`splitload crowd run`: data in, outputs and what the devices did out; bad requests are one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_models

from splitload import ParallelLoader
from splitload.base.machine import available_threads
from splitload.cli import main

COUNT = 6


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Inputs of `chain`: one row of `x` each, and sixteen of `z`."""
    feeds = [runtime_models.feeds(rows=1, seed=seed) for seed in range(COUNT)]
    path = tmp_path / "data.npz"
    np.savez(path, **{name: np.concatenate([each[name] for each in feeds]) for name in ("x", "z")})
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main(["crowd", "run", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_outputs_are_saved_as_the_inputs_lie(
    chain_bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.npz"
    code, out, err = run(capsys, chain_bundle, "--data", data, "--workers", "2", "-o", target, "--json")
    assert (code, err) == (0, "")
    told: dict[str, Any] = json.loads(out)
    assert told["num_inputs"] == COUNT and told["errors"] == {} and told["saved"] == str(target)
    assert {device["name"] for device in told["devices"]} == {"local-1", "local-2"}
    assert {device["most_resident"] for device in told["devices"]} == {1}
    assert sum(device["tasks"] for device in told["devices"]) == COUNT * len(told["stages"])
    given, saved = np.load(data), np.load(target)
    with ParallelLoader(chain_bundle, upgrade=False) as model:
        for place in range(COUNT):
            feeds = {"x": given["x"][place : place + 1], "z": given["z"][16 * place : 16 * place + 16]}
            for name, expected in zip(("y", "early"), model.run(["y", "early"], feeds), strict=True):
                np.testing.assert_array_equal(saved[name][place : place + 1], expected)


def test_a_table_says_what_each_device_did(chain_bundle: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--workers", "1", "--mode", "barrier", "--residency", "all", "--without", "compression,stage-cache"]
    code, out, err = run(capsys, chain_bundle, "--data", data, *words)
    assert (code, err) == (0, "")
    assert "6 inputs through 4 stages on 1 device in" in out
    for word in ("local-1", "portable", "peak MiB", "sent: stages", "infer |", "measured"):
        assert word in out


@pytest.mark.parametrize(
    ("arrays", "words", "told"),
    [
        (None, [], "cannot read"),
        (np.ones((2, 16), np.float32), [], "is no .npz file"),
        ({"x": np.ones((2, 16), np.float32)}, [], "has the arrays ['x'], the model takes ['x', 'z']"),
        ({"x": np.ones((2, 16), np.float32), "z": np.ones(17, np.float32)}, [], "must be a multiple of 16"),
        ({"x": np.ones((3, 16), np.float32), "z": np.ones(32, np.float32)}, [], "different numbers of inputs"),
        ({"x": np.ones((0, 16), np.float32), "z": np.ones(0, np.float32)}, [], "holds no input"),
        ({"x": np.ones((1, 16)), "z": np.ones(16)}, ["-o", "out.npy"], "-o takes a file NAME.npz"),
        ({"x": np.ones((1, 16)), "z": np.ones(16)}, ["--scheduler", "10.0.0.1:1"], "neither tls:// nor tcp://"),
        ({"x": np.ones((1, 16)), "z": np.ones(16)}, ["--scheduler", "tcp://10.0.0.1:1"], "--certificates"),
        ({"x": np.ones((1, 16)), "z": np.ones(16)}, ["--workers", "0"], "at least 1"),
        ({"x": np.ones((1, 16)), "z": np.ones(16)}, ["--without", "luck"], "mechanism"),
        (None, ["--workers", str(available_threads()), "--scheduler", "tcp://127.0.0.1:1"], "not allowed with"),
        (None, ["--certificates", "keys"], "--certificates is for a crowd that is there"),
        (None, ["--insecure"], "--insecure is for a crowd that is there"),
        (None, ["--scheduler", "tcp://127.0.0.1:1", "--cache-size", "1GB"], "'splitload crowd worker'"),
    ],
    ids=[
        "file",
        "array",
        "names",
        "rows",
        "counts",
        "none",
        "output",
        "scheme",
        "trust",
        "workers",
        "without",
        "both",
        "keys",
        "insecure",
        "cache",
    ],
)
def test_bad_requests_are_one_line(
    chain_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arrays: dict[str, Any] | Any | None,
    words: list[str],
    told: str,
) -> None:
    data = tmp_path / "data.npz"
    if isinstance(arrays, dict):
        np.savez(data, **arrays)
    elif arrays is not None:
        with data.open("wb") as file:
            np.save(file, arrays)
    code, out, err = run(capsys, chain_bundle, "--data", data, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err and err.startswith("splitload: ")


def test_inputs_that_fail_are_named_and_all_that_fail_is_an_error(
    chain_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.ones((2, 16)), z=np.ones(32))  # float64
    code, out, err = run(capsys, chain_bundle, "--data", data, "--workers", "1")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "the model takes a tensor(float)" in err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["interrupt", "sigterm"])
def test_who_is_told_to_end_leaves_nothing(chain_bundle: Path, data: Path, tmp_path: Path, how: signal.Signals) -> None:
    tmp_path = tmp_path / "scratch"
    tmp_path.mkdir()
    words = ["crowd", "run", str(chain_bundle), "--data", str(data), "--workers", "2"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "splitload", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    deadline_s = time.monotonic() + 60
    while not any(tmp_path.glob("splitload-crowd.*/*.log")):  # workers are starting
        assert time.monotonic() < deadline_s and process.poll() is None
        time.sleep(0.02)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().count("\n") == 1 and "Traceback" not in err.decode()
    assert not list(tmp_path.iterdir())
