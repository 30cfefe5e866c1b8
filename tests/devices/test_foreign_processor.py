"""A bundle made for a processor of another kind, which is there or emulated; what it takes is said in docs/devices.md.

The variable names a command that runs Python on that processor, with numpy and onnxruntime: a script around
`qemu-aarch64-static`, say. Nothing is timed: an emulated processor tells no speeds.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_graph_runtime import pictures

from splitload.base.errors import SplitloadError
from splitload.build.agreement import compare_with_stock
from splitload.build.assemble import Steps, VariantPlan, build_bundle
from splitload.devices.graph_runtime import FarRuntime
from splitload.devices.machine import Machine
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs.here import HERE
from splitload.graphs.layout import channel_block
from splitload.measure import process
from splitload.measure.answers import check_answer
from splitload.measure.fresh import run_job
from splitload.measure.job import Job
from splitload.plan.partition import Partition

PYTHON = os.environ.get("SPLITLOAD_FOREIGN_PYTHON", "")
ROOT = Path(__file__).resolve().parents[2]
SAYS = """\
import sys
sys.path.insert(0, sys.argv[1])
from splitload.base.machine import cpu_architecture
import onnxruntime
print(cpu_architecture(), onnxruntime.__version__)
"""


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="SPLITLOAD_FOREIGN_PYTHON names no Python of another processor")
def test_a_bundle_for_another_kind_of_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = subprocess.run([PYTHON, "-c", SAYS, str(ROOT)], capture_output=True, text=True, check=True)
    cpu, version = said.stdout.split()

    def run(
        job: Job, folder: Path, failed: Callable[[str], SplitloadError], *, cold: Sequence[Path] = ()
    ) -> dict[str, Any]:
        with monkeypatch.context() as patch:
            patch.setattr(process, "interpreter", lambda: Path(PYTHON))
            return check_answer(job, run_job(job, folder, failed))

    runtime = FarRuntime(Machine("board", "the board", 1, cpu, "emulated", lambda: version, run))
    assert (cpu, version) != (HERE.cpu, HERE.version)
    path = tmp_path / "m.onnx"
    path.write_bytes(pictures().SerializeToString())
    source, cache = Source.open(path, "m"), tmp_path / "cache"
    native = load_graph(source, "native", cache, runtime=runtime)
    portable = load_graph(source, "portable", cache)
    plans = [
        VariantPlan(native, Partition(len(native.blocks), (1,)), 2),
        VariantPlan(portable, Partition(len(portable.blocks)), 1),
    ]
    notes: list[str] = []
    steps = Steps(on_note=notes.append)
    manifest = build_bundle(tmp_path / "b.splitload", plans, device="board", steps=steps, runtime=runtime)
    variant = manifest.variants[0]
    assert (variant.cpu, variant.runtime, notes) == (cpu, version, [])
    assert variant.needs is not None
    assert variant.needs.canary is not None
    assert variant.needs.block == channel_block(runtime)
    found = compare_with_stock(tmp_path / "b.splitload", manifest, path, {}, runtime)
    assert found.agrees
    assert set(found.difference) >= {"native", "portable"}
