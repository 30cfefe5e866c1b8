"""`splitload bench`: what it compares, what it refuses, and the record it makes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest

from splitload.base.errors import StageError
from splitload.measure import storage
from splitload.measure.arms import ARMS

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], few_samples: None) -> Cli:
    """Run `splitload bench` in this process; return exit code, stdout and stderr."""
    from splitload.cli import main

    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> tuple[int, str, str]:
        return main(["bench", *map(str, words), "--runs", "1"]), *capsys.readouterr()

    return run


def test_bench_leaves_out_what_does_not_apply(cli: Cli, chain_model: Path) -> None:
    code, out, err = cli(chain_model, "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert (record["kind"], record["schema_version"], record["page_cache"]) == ("bench", 2, "warm")
    assert list(record["arms"]) == list(record["max_abs_difference"]) == list(record["files_bytes"])
    assert [name for name in record["arms"] if name != "openvino"] == [
        "stock",
        "tuned",
        "ort-format",
        "splitload",
        "splitload-buffers",
    ]
    assert set(record["left_out"]) | set(record["arms"]) == set(ARMS)
    assert record["left_out"]["torch"] == "an .onnx file is no torch module; zoo:NAME and package.module:factory are"
    assert record["model"] == "chain.onnx"
    assert str(chain_model.parent) not in out
    code, out, err = cli(chain_model, "--arms", "tuned,splitload")
    assert (code, err) == (0, "")
    assert "stock÷arm" not in out
    assert "left out" not in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["MODEL", "--arms", "torch"], 2, "arm 'torch' cannot be compared: an .onnx file is no torch module"),
        (["MODEL", "--arms", "stocks"], 2, "unknown arm 'stocks'. Did you mean stock?"),
        (["MODEL", "--deep", "3"], 2, "bench takes a MODEL or --deep N, not both"),
        ([], 2, "bench needs a MODEL or --deep N"),
        (["--deep", "0"], 2, "whole number of at least 1"),
        (["--deep", "9" * 20], 2, "--deep takes at most 1000000 nodes"),
        (["MODEL", "--bundle", "nosuch", "--arms", "splitload"], 1, "is not a bundle"),
        (["MODEL", "--bundle", "", "--arms", "splitload"], 2, "--bundle needs a name"),
        (["MODEL", "--storage-mbps", "5"], 2, "--storage-mbps needs --cold"),
        (["MODEL", "--cold", "--storage-mbps", "0"], 2, "a number above 0"),
    ],
)
def test_bench_refuses(cli: Cli, chain_model: Path, words: list[str], code: int, message: str) -> None:
    got, out, err = cli(*(str(chain_model) if word == "MODEL" else word for word in words))
    assert (got, out, err.count("\n")) == (code, "", 1)
    assert message in err


def test_bench_says_that_it_cannot_cap(cli: Cli, chain_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.os, "geteuid", lambda: 1000, raising=False)
    code, out, err = cli(chain_model, "--cold", "--storage-mbps", "5")
    assert (code, out) == (1, "")
    if hasattr(os, "posix_fadvise"):
        assert err == "splitload: --storage-mbps cannot cap reads here: it needs root\n"


@pytest.mark.slow
def test_bench_fails_where_an_essential_arm_does(cli: Cli, chain_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from splitload.commands import bench

    def differs(name: str, *_: Any) -> float:
        if name in ("ort-format", bad):
            raise StageError(f"arm '{name}' computes something else: /a/b.onnx")
        return 0.0

    monkeypatch.setattr(bench, "compare", differs)
    bad = "none"
    code, out, _ = cli(chain_model, "--arms", "stock,ort-format")
    assert code == 1
    code, out, _ = cli(chain_model)
    assert code == 0
    assert "left out: ort-format: computes something else: b.onnx" in out
    assert max(map(len, out.splitlines()[2:12])) <= 80
    bad = "tuned"
    code, out, err = cli(chain_model)
    assert (code, out) == (1, "")
    assert err.startswith("splitload: arm 'tuned' computes something else")


@pytest.mark.parametrize("step", [pytest.param(step, marks=pytest.mark.slow) for step in ("make_arm", "outputs_of")])
def test_bench_leaves_out_what_this_version_cannot_run(
    cli: Cli, chain_model: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from splitload.commands import bench

    real = getattr(bench, step)

    def fails(what: Any, *others: Any) -> Any:
        if "tuned" in (what, getattr(what, "name", None)):
            raise StageError("arm 'tuned' needs a later onnxruntime")
        return real(what, *others)

    monkeypatch.setattr(bench, step, fails)
    code, out, err = cli(chain_model, "--runs", "1")
    assert (code, err) == (0, "")
    assert "left out: tuned: needs a later onnxruntime" in out
    code, _, err = cli(chain_model, "--arms", "stock,tuned")
    assert (code, err) == (1, "splitload: arm 'tuned' cannot be compared: needs a later onnxruntime\n")


@pytest.mark.slow
def test_bench_on_a_deep_graph(cli: Cli) -> None:
    code, out, err = cli("--deep", "40", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["model"] == "deep:40"
    assert list(record["arms"]) == ["stock", "tuned", "ort-format", "splitload", "splitload-buffers"]
    assert record["plan"]["num_stages"] >= 1


def test_bench_on_cold_files(cli: Cli, evictable: Path, chain_model: Path) -> None:
    code, out, err = cli(chain_model, "--cold", "--arms", "stock,tuned", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert (record["page_cache"], record["evicted_by"]) == ("cold", "posix_fadvise, verified with mincore")
    assert record["plan"] is None
    assert record["storage_bytes_per_s"] is None
    assert all(row["touched_bytes"] > 0 for rows in record["samples"].values() for row in rows)


def test_a_model_whose_answer_stock_cannot_return_is_told_of(cli: Cli, tmp_path: Path) -> None:
    body = "g (float[2,3] x) => (bfloat16[2,3] y) { y = Cast <to=16> (x) }"
    code, _, err = cli(models.save(models.text(body), tmp_path), "--runs", "1")
    assert code == 1
    assert (
        "no answer of a stock session to compare with: onnxruntime's Python module cannot return the output 'y'" in err
    )
