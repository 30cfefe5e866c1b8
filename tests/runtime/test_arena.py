"""All stages of cut models take their working memory from one arena; models of one stage do not touch it."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import models
import pytest

from splitload.build.assemble import VariantPlan, build_bundle
from splitload.frontends.onnx import Source, load_graph
from splitload.plan.partition import Partition

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux to tell of memory")
VALUE_BYTES = 8 << 20

CHILD = f"""
import json, os, sys
import numpy as np
import onnxruntime as ort
from splitload import ParallelLoader
from splitload.runtime import arena
from splitload.studies.memory_child import settled_bytes

x = np.ones((1, {VALUE_BYTES // 4}), np.float32)


def held(folder):
    with ParallelLoader(folder, upgrade=False) as model:
        before = settled_bytes()["rss_bytes"]
        for _ in range(2):
            model.run(None, {{"x": x}})
        return settled_bytes()["rss_bytes"] - before


one = held(sys.argv[1])
touched = arena._is_there
eight = held(sys.argv[2])
own = ort.InferenceSession(sys.argv[3], providers=["CPUExecutionProvider"]).run(None, {{"x": x}})[0]
child = os.fork()
if not child:
    fresh = not arena._is_there
    with ParallelLoader(sys.argv[2]) as model:
        same = np.array_equal(model.run(None, {{"x": x}})[0], own)
    os._exit(0 if fresh and same else 1)
status = os.waitpid(child, 0)[1]
print(json.dumps({{"one": one, "touched": touched, "eight": eight, "child": status}}))
"""


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What a fresh process says of a model as one stage and as eight."""
    folder = tmp_path_factory.mktemp("arena")
    names = ["x", *(f"t{number}" for number in range(15)), "y"]
    kinds = ("Sin", "Cos")
    lines = [f"{after} = {kinds[at % 2]}({before})" for at, (before, after) in enumerate(pairwise(names))]
    size = f"float[1,{VALUE_BYTES // 4}]"
    model = models.save(models.text(f"g ({size} x) => ({size} y) {{ {chr(10).join(lines)} }}"), folder)
    graph = load_graph(Source.open(model, "m"), "portable", folder / "cache")
    for name, points in (("one", []), ("eight", [2, 4, 6, 8, 10, 12, 14])):
        build_bundle(folder / name, [VariantPlan(graph, Partition.of(len(graph.blocks), points), 2)], device="here")
    words = [sys.executable, "-c", CHILD, str(folder / "one"), str(folder / "eight"), str(model)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_eight_stages_hold_about_what_one_does(answer: dict[str, int]) -> None:
    """What crosses a cut lies in arrays of the run (boundaries.py), and so leaves nothing behind."""
    assert answer["eight"] < answer["one"] + 0.5 * VALUE_BYTES


def test_one_stage_leaves_the_arena_of_the_process_alone(answer: dict[str, int]) -> None:
    assert not answer["touched"]


def test_a_forked_child_makes_an_arena_of_its_own(answer: dict[str, int]) -> None:
    assert answer["child"] == 0
