"""The study of whole processes: its programs, the program in C, its targets and its tables."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import pytest

from splitload.base.errors import StageError, UsageError
from splitload.studies import records, whole, whole_baseline
from splitload.studies.whole_processes import build_of
from splitload.studies.whole_programs import WAYS, Input
from splitload.studies.whole_targets import targets

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")
HEADER = whole_baseline.HEADER


def given(kind: str = "tensor(float)") -> dict[str, Input]:
    return {"x": Input(kind, (1, 4), Path("x.npy"), Path("x.bin"))}


def test_programs_read_their_inputs_after_the_load_call() -> None:
    text = WAYS["splitload"].whole(Path("a.splitload"), given())
    order = [text.index(word) for word in ("import ParallelLoader", "= ParallelLoader(", "import numpy", "np.load")]
    assert order == sorted(order)
    assert "numpy" not in WAYS["splitload-buffers"].whole(Path("a.splitload"), given())
    assert WAYS["before"].whole(Path("a"), given()) == WAYS["splitload"].whole(Path("a"), given())


def test_the_clock_of_the_first_output_starts_after_imports_and_inputs() -> None:
    for way in WAYS.values():
        text = way.first_output(Path("a"), given())
        start = text.index("start_s =")
        assert "import" not in text[start:]
        assert text.index("feeds =") < start < text.index(way.load.format(path=repr("a")))
    assert WAYS["stock"].settled_first_output(Path("a"), given()) is None
    settled = WAYS["splitload"].settled_first_output(Path("a"), given())
    assert settled is not None
    assert settled.index("ParallelLoader") < settled.index("time.sleep(") < settled.index("start_s =")


def test_programs_are_python() -> None:
    for way in WAYS.values():
        for text in (way.whole(Path("it's"), given()), way.first_output(Path("it's"), given())):
            compile(text, "program", "exec")


def test_an_input_without_buffers_is_refused() -> None:
    with pytest.raises(UsageError, match="float16"):
        WAYS["splitload-buffers"].whole(Path("a"), given("tensor(float16)"))


def test_the_header_has_the_functions_where_the_library_has_them() -> None:
    lines = [line for line in whole_baseline.header().splitlines() if line.startswith("    ")]
    assert len(lines) == len(whole_baseline.FUNCTIONS)
    for name in (*whole_baseline._RETURN_STATUS, *whole_baseline._OTHERS):
        assert f"(*{name})" in lines[whole_baseline.FUNCTIONS.index(name)]


def test_literals_of_c_hold_any_name() -> None:
    assert whole_baseline._text('a"b\\c?é\n') == '"a\\042b\\134c\\077\\303\\251\\012"'


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_program_that_does_not_compile_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"does not compile: .*error"):
        whole_baseline.compiled(tmp_path, "#define STAGES no such thing", None)


def figures(process_s: float, peak_bytes: float = 1.0, ttfo_s: float = 1.0) -> dict[str, Any]:
    named = {"process_s": process_s, "exit_s": process_s, "ttfo_s": ttfo_s, "steady_inference_s": 0.5}
    named |= {"settled_ttfo_s": ttfo_s / 2, "peak_memory_bytes": peak_bytes}
    return {name: {"median": value, "q1": value / 2, "q3": value * 2} for name, value in named.items()}


def model(name: str, size: int, buffers_s: float, **more: dict[str, Any]) -> dict[str, Any]:
    arms = {"stock": figures(8.0, ttfo_s=8.0), "tuned": figures(4.0, ttfo_s=1.0), "before": figures(4.0, 2.0)}
    arms |= {"splitload": figures(3.0), "splitload-buffers": figures(buffers_s)} | more
    return {"of": "model", "model": name, "model_bytes": size, "num_stages": 1, "runs": 9, "arms": arms}


def start(build: str, import_s: float, imported: list[str]) -> dict[str, Any]:
    values = {"import_s": import_s, "loader_import_s": 0.02, "version_s": 0.03, "pass_s": 0.01}
    spread = {name: {"median": value, "q1": value, "q3": value} for name, value in values.items()}
    return {"of": "start", "build": build, "imported": imported, "runs": 15, "figures": spread}


def test_targets_are_ratios_of_medians() -> None:
    rows = [model("squeezenet1_1", 5, 1.0, c=figures(0.5)), model("large", 200_000_000, 4.0)]
    rows += [start("after", 0.002, []), start("before", 0.2, ["numpy"])]
    made = {(target["what"], target["figure"]): target for target in targets(rows)}

    def told(what: str, figure: str) -> tuple[Any, ...]:
        target = made[what, figure]
        return target["value"], target["met"], target["model"], target["models"]

    assert told("whole process, stock ÷ buffers", "geometric mean") == (pytest.approx(4.0), False, "large", 2)
    assert told("whole process, tuned ÷ buffers", "geometric mean") == (pytest.approx(2.0), False, "large", 2)
    assert told("whole process, tuned ÷ buffers", "worst") == (1.0, False, "large", 2)
    numpy = told("whole process, numpy arrays, this build ÷ the build before", "geometric mean")
    assert numpy == (pytest.approx(0.75), True, "squeezenet1_1", 2)
    assert told("whole process, buffers ÷ the same in C, squeezenet1_1", "worst") == (2.0, False, "squeezenet1_1", 1)
    assert told("peak memory, buffers ÷ the build before, under 100 MB", "worst") == (0.5, True, "squeezenet1_1", 1)
    assert told("`import splitload`, ms, with neither numpy nor onnxruntime", "median") == (2.0, True, None, 1)
    assert told("`splitload --version` ÷ `python -c pass`", "median") == (pytest.approx(3.0), False, None, 1)
    assert told("TTFO as soon as the import has returned, this build ÷ the build before", "worst")[:2] == (1.0, True)
    assert told("TTFO, stock ÷ splitload", "geometric mean") == (pytest.approx(16.0), True, "squeezenet1_1", 2)
    limit = told("TTFO ÷ steady inference of splitload, 79 MB and more", "geometric mean")
    assert limit == (pytest.approx(1.0), True, "large", 1)
    in_c = {key: target["in_c"] for key, target in made.items() if target["in_c"] is not None}
    assert in_c == {
        ("whole process, stock ÷ buffers", "geometric mean"): pytest.approx(16.0),
        ("whole process, tuned ÷ buffers", "geometric mean"): pytest.approx(8.0),
        ("whole process, tuned ÷ buffers", "worst"): 8.0,
        ("peak memory, buffers ÷ the build before, under 100 MB", "worst"): 0.5,
    }


def test_an_import_of_numpy_misses_the_target_and_a_lack_of_models_is_told() -> None:
    made = targets([start("after", 0.002, ["numpy"])])
    (light,) = (target for target in made if target["what"].startswith("`import"))
    assert not light["met"]
    assert [target["met"] for target in made if target["models"] == 0] == [None] * 12


def test_tables_have_every_arm_and_target() -> None:
    rows = [model("m", 5_000_000, 1.0, c={key: figures(0.5)[key] for key in ("process_s", "peak_memory_bytes")})]
    rows += [start("after", 0.002, []), start("before", 0.2, ["numpy", "onnxruntime"])]
    record = {"rows": [*rows, {"of": "targets", "targets": targets(rows)}], "provenance": {"command": "make it"}}

    def table(word: str) -> str:
        return records.fill(f"<!-- results:{word} -->\n<!-- end -->", {"whole": [("w.json", record)]})

    every = table("whole")
    assert "| m (5 MB) | splitload-buffers, k = 1 | 1000 (500–2000) | 1000 (500–2000) |" in every
    assert "| m (5 MB) | c | 500 (250–1000) | – | – | – | – | 0 (0–0) | 9 |" in every
    assert "`w.json`: `make it`" in every
    assert "| whole process, stock ÷ buffers | geometric mean | ≥ 6 | 8.00 | 16.00 | yes | m | 1 |" in table(
        "whole_targets"
    )
    assert "| this | 2.0 (2.0–2.0) |" in table("whole_starts")
    assert "| before | 200.0 (200.0–200.0) |" in table("whole_starts")
    assert "| m | 500 | 510 | 1000 | 1.96 | 15.69 | 7.84 |" in table("whole_bound")  # Python starts in 10 ms
    assert "w.json" not in table("whole_targets")
    first = "8000 (4000–16000) | 4000 (2000–8000) | 3000 (1500–6000) | 1000 (500–2000) | 8.00 |"
    assert f"| m (5 MB) | {first} 8000 | 1000 | 500 | 1 | 9 |" in table("headline")


@linux
@pytest.mark.parametrize("wrong", ["missing", "no python", "no header"])
def test_what_cannot_be_measured_is_refused_at_once(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    before = tmp_path / "python"
    if wrong == "no python":
        before.write_text("#!/bin/sh\necho no such package >&2\nexit 1\n")
        before.chmod(0o755)
    words = ["--header", str(tmp_path / "other.h")] if wrong == "no header" else []
    assert whole.main(["--before", str(before), *words]) == 2
    told = {
        "missing": "is no Python executable",
        "no python": "no such package",
        "no header": f"no file named {HEADER}",
    }
    assert told[wrong] in capsys.readouterr().err


@linux
def test_the_build_at_hand_is_known(tmp_path: Path) -> None:
    build = build_of(Path(sys.executable), tmp_path)
    assert {"numpy", "onnxruntime", "python", "splitload"} == build.packages.keys()
    assert str(build.python) not in json.dumps(build.to_json())


@pytest.mark.slow
@linux
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_all_arms_answer_alike_and_are_recorded(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    network, record = models.save(models.chain(4), tmp_path), tmp_path / "record.json"
    before = checkout / ".venv" / "bin" / "python"
    shutil.copy(Path(sys.executable).with_name("splitload"), before.with_name("splitload"))
    words = ["--before", str(before), "--runs", "2", "--starts", "1", "--bundles", str(tmp_path / "kept")]
    assert whole.main([*words, "--models", str(network), "-o", str(record)]) == 0
    measured, after, earlier, aimed_at = json.loads(record.read_text())["rows"]
    assert list(measured["arms"]) == ["stock", "tuned", "before", "splitload", "splitload-buffers", "c"]
    for taken in measured["samples"].values():
        assert len(taken) == 2
        assert all(0 < sample["process_s"] < sample["exit_s"] for sample in taken)
    assert (after["build"], earlier["build"]) == ("after", "before")
    assert after["imported"] == []
    assert all(target["value"] is not None for target in aimed_at["targets"] if target["figure"] == "median")
    assert (tmp_path / "kept").is_dir()
    for place in (checkout, tmp_path / "kept"):
        assert str(place) not in record.read_text()


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_baseline_is_plain_c(tmp_path: Path) -> None:
    (tmp_path / HEADER).write_text(whole_baseline.header())
    (tmp_path / "model.h").write_text(
        '#define THREADS 1\n#define MOST 2\n#define OUTPUT "y"\n#define INPUTS {"x", "x.bin", 1, 2, {1, 4}}\n'
        '#define STAGES {"a.ort", 0, 1, 1, 1, {"x"}, {"y"}, {{"key", "value"}}}\n'
    )
    words = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", str(tmp_path)]
    subprocess.run(["cc", *words, str(whole_baseline.SOURCE)], check=True)
