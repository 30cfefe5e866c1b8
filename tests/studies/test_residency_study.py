"""The study of residency: what its processes answer, and the tables that are made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitload.base.errors import StageError
from splitload.bundle.read import read_manifest
from splitload.measure.fresh import run_job
from splitload.measure.sampling import Arm, load_job, saved_inputs
from splitload.studies.control_groups import small_machine
from splitload.studies.residency import _taken
from splitload.studies.residency_child import HoldModel
from splitload.studies.residency_tables import residency, targets

MIB = 1 << 20


def arm(peak_mib: float, steady_s: float | None) -> dict[str, Any]:
    sample = {
        "peak_bytes": (peak_mib + 40) * MIB,
        "idle_bytes": 40 * MIB,
        "ttfo_s": 0.1,
        "steady_runs_s": [steady_s] * 3,
    }
    return _taken([None if steady_s is None else sample] * 3)


ROWS = [
    {
        "of": "model", "model": "distilbert", "weights_bytes": 268e6,
        "ceilings": {
            "40MB": {"ceiling_bytes": 40_000_000, "num_stages": 7},
            "third": {"ceiling_bytes": 89_000_000, "num_stages": 4},
        },
        "arms": {
            "stock": arm(700, 0.06), "splitload, all (40MB)": arm(200, 0.05), "splitload, 40MB": arm(41.5, 0.06),
            "splitload, all (third)": arm(200, 0.05), "splitload, third": arm(80, 0.045),
        },
    },
    {
        "of": "small", "model": "resnet152", "memory_bytes": 160_000_000, "measured_bytes_per_s": [250e6] * 3,
        "stage_bytes": 250_000_000,
        "arms": {"stock": arm(0, None), "splitload, all": arm(100, 1.5), "splitload, 80MB": arm(60, 0.9)},
    },
]  # fmt: skip


def test_targets_are_of_medians_and_the_same_bundle_without_a_ceiling() -> None:
    _, body = targets([("", {"rows": ROWS})])
    assert body == [
        ("distilbert under 40MB: peak, MiB", "≤ 43", "41.5"),
        ("distilbert under 40MB: steady ÷ without", "≤ 1.10", "1.20"),
        ("resnet152 in 160 MB, stock: steady ÷ (bytes ÷ bandwidth)", "–", "killed"),
        ("resnet152 in 160 MB, splitload, all: steady ÷ (bytes ÷ bandwidth)", "–", "1.50"),
        ("resnet152 in 160 MB, splitload, 80MB: steady ÷ (bytes ÷ bandwidth)", "≤ 1.15", "0.90"),
        ("1 models under a third of their weights: steady ÷ without, geometric mean", "≤ 1.15", "0.90"),
    ]


def test_the_table_has_every_arm_and_says_what_was_killed() -> None:
    head, body = residency([("", {"rows": ROWS})])
    assert len(body) == 8
    assert all(len(row) == len(head) for row in body)
    assert body[2][1:5] == ("splitload, 40MB = 40.0 MB, k = 7", "41.5 (41.5–41.5)", "60.0 (60.0–60.0)", "1.20")
    assert body[5][2:] == ("killed", "killed", "", "killed", "0 of 3")


@pytest.mark.parametrize("residency", ["all", "stage"])
def test_a_process_holds_a_bundle(native_bundle: Path, residency: str) -> None:
    with saved_inputs(read_manifest(native_bundle).inputs, {}) as (folder, given):
        job = HoldModel(load_job(Arm("splitload", native_bundle), folder, given, outputs=True), residency, 2)
        found = run_job(job, folder, StageError)
        assert (folder / found["output"]).exists()
    assert found["peak_bytes"] >= found["idle_bytes"] > 0
    assert len(found["steady_runs_s"]) == 2


@pytest.mark.root
def test_a_process_in_a_small_machine_is_killed_where_it_takes_more(tmp_path: Path, native_bundle: Path) -> None:
    import subprocess
    import sys

    program = "import sys; print(len(bytearray(int(sys.argv[1])) + b'x'))"
    with small_machine(64 << 20, 1 << 28, native_bundle / "manifest.json") as within:
        fits, killed = (
            subprocess.run([*within, sys.executable, "-c", program, str(size)], capture_output=True, check=False)
            for size in (1 << 20, 1 << 28)
        )
    assert fits.returncode == 0, fits.stderr
    assert killed.returncode == -9
    assert not list(Path("/sys/fs/cgroup/memory").glob("splitload-study-*"))
