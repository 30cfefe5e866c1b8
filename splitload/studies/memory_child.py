"""The fresh process of the study of memory: does one thing, and says what memory that took.

It is given a job as JSON: "stock", a session on `path`; "splitload", a loader on the bundle `path`; both are run and
measured once the memory has settled. "train" makes a bundle of `path` with the words of a command line.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

RUNS = 4


def main() -> int:
    """Answer one job."""
    import resource

    from splitload.measure.__main__ import memory_bytes

    job = json.loads(sys.argv[1])
    answer = {"train": _train, "stock": _stock, "splitload": _splitload}[job["what"]](job)
    # that of children begins with no more than what this process has held, and so can be trusted
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    # the system counts the largest in batches, and so may be a little behind with it
    peak = max(memory_bytes()[0] or 0, children, answer.get("rss_bytes", 0))
    print(json.dumps({**answer, "peak_bytes": peak}))  # noqa: T201
    return 0


def settled_bytes() -> dict[str, int]:
    """Return what this process holds: all pages it maps (rss), and pages that are mapped k times for a k-th (pss)."""
    from splitload.base.machine import return_memory

    gc.collect()
    return_memory()
    rows = [line.split() for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]]
    kib = {row[0].rstrip(":").lower(): int(row[1]) for row in rows}
    return {"rss_bytes": kib["rss"] << 10, "pss_bytes": kib["pss"] << 10}


def _train(job: dict[str, Any]) -> dict[str, int]:
    from splitload.cli import main as splitload

    if splitload(["train", job["path"], *job["words"]]):
        raise SystemExit("the bundle could not be made")
    return {}


def _stock(job: dict[str, Any]) -> dict[str, int]:
    import onnxruntime as ort

    return _run(ort.InferenceSession(job["path"], providers=["CPUExecutionProvider"]))


def _splitload(job: dict[str, Any]) -> dict[str, int]:
    from splitload import ParallelLoader

    return _run(ParallelLoader(job["path"]))


def _run(model: Any) -> dict[str, int]:
    """Run a model until its memory has settled."""
    from splitload.runtime.inputs import example_inputs

    feeds = example_inputs(model.get_inputs())
    model.run(None, feeds)
    if hasattr(model, "wait"):
        model.wait("upgraded")
    for _ in range(RUNS):
        model.run(None, feeds)
    return settled_bytes()
