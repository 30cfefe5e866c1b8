"""The fresh process of the study of residency: holds one model in one arm's way, and says what memory that takes."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from splitload.base.memory import reset_peak
from splitload.measure import __main__ as program
from splitload.measure.job import Job, LoadModel, read_job

UNMEASURED_RUNS = 2
BEGIN_S = 0.5  # in which the runtime has begun, on a thread of its own


@dataclass(frozen=True, slots=True)
class HoldModel(Job):
    """Load a model and run it again and again.

    The answer has `idle_bytes`, resident before the load call with everything imported and the inputs there;
    `peak_bytes`, the most resident from then on; `ttfo_s`; `steady_runs_s`; and `output`, the .npy file of the first
    output, None where it was not asked for.

    Attributes:
        load: What is loaded, as a benchmark does.
        residency: Of the splitload arm, "all" or a ceiling.
        runs: How often it is run and measured.
    """

    kind: ClassVar[str] = "hold"
    program: ClassVar[str] = "splitload.studies.residency_child"
    load: LoadModel
    residency: str
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Return the message: that of the load, and what comes besides."""
        return {**self.load.to_json(), "kind": self.kind, "residency": self.residency, "runs": self.runs}


def main() -> None:
    """Do one job."""
    program.main(answer)


def answer(message: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return what holding a model takes."""
    residency, runs = message.pop("residency"), message.pop("runs")
    load = {**message, "kind": LoadModel.kind}
    read_job(load, (LoadModel,))
    load["path"] = str(Path(folder) / load["path"])
    feeds = program.feeds_of(load, folder)
    if load["arm"] == "splitload":
        open_model = _splitload(load, feeds, residency)
    else:
        open_model = program.ARMS[load["arm"]](load, feeds)
    time.sleep(BEGIN_S)
    gc.collect()
    reset_peak()
    idle_bytes = program.memory_bytes()[1]
    start = time.perf_counter()
    run, settle = open_model()
    outputs = run()
    ttfo_s = time.perf_counter() - start
    settle()
    file = program.saved_output(outputs[0], folder, "output-0.npy") if load["outputs"] else None
    del outputs
    taken_s = []
    for turn in range(UNMEASURED_RUNS + runs):
        before = time.perf_counter()
        run()
        if turn >= UNMEASURED_RUNS:
            taken_s.append(time.perf_counter() - before)
    return {
        "idle_bytes": idle_bytes,
        "peak_bytes": program.memory_bytes()[0],
        "ttfo_s": ttfo_s,
        "steady_runs_s": taken_s,
        "output": file,
    }


def _splitload(load: dict[str, Any], feeds: dict[str, Any], residency: str) -> program.Open:
    """`ParallelLoader` under a ceiling; inputs and outputs are numpy's, as in the other arms."""
    from splitload import ParallelLoader

    def open_model() -> program.Opened:
        model = ParallelLoader(load["path"], residency=residency)

        def settle() -> dict[str, Any]:
            model.wait("upgraded")
            return {}

        return lambda: model.run(None, feeds), settle

    return open_model
