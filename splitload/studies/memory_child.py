"""The fresh process of the study of memory: does one thing, and says what memory that took."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from splitload.base.fields import Reader
from splitload.measure import __main__ as program
from splitload.measure.job import Job, read_job

RUNS = 4


@dataclass(frozen=True, slots=True)
class TakeMemory(Job):
    """Do one thing; the answer has `peak_bytes`, and but for "train" `rss_bytes` and `pss_bytes`.

    Attributes:
        what: "stock", a session on `path`; "splitload", a loader on the bundle `path`; both are run and measured once
            the memory has settled. "train" makes a bundle of `path`.
        path: The model or bundle.
        words: Further words of the command line of "train".
    """

    kind: ClassVar[str] = "memory"
    program: ClassVar[str] = "splitload.studies.memory_child"
    what: str
    path: str
    words: tuple[str, ...] = ()

    @classmethod
    def read(cls, row: Reader) -> TakeMemory:
        """Return what a message says."""
        return cls(row.choice("what", "train", "stock", "splitload"), row.text("path"), tuple(row.sequence("words")))


def main() -> None:
    """Do one job."""
    program.main(lambda message, _: answer(read_job(message, (TakeMemory,))))


def answer(job: Job) -> dict[str, int]:
    """Return the bytes that a job has taken."""
    import resource

    assert isinstance(job, TakeMemory)  # noqa: S101
    found = {"train": _train, "stock": _stock, "splitload": _splitload}[job.what](job)
    # that of children begins with no more than what this process has held, and so can be trusted
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    # the system counts the largest in batches, and so may be a little behind with it
    peak = max(program.memory_bytes()[0] or 0, children, found.get("rss_bytes", 0))
    return {**found, "peak_bytes": peak}


def settled_bytes() -> dict[str, int]:
    """Return what this process holds: all pages it maps (rss), and pages that are mapped k times for a k-th (pss)."""
    from splitload.base.machine import return_memory

    gc.collect()
    return_memory()
    rows = [line.split() for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]]
    kib = {row[0].rstrip(":").lower(): int(row[1]) for row in rows}
    return {"rss_bytes": kib["rss"] << 10, "pss_bytes": kib["pss"] << 10}


def _train(job: TakeMemory) -> dict[str, int]:
    from splitload.cli import main as splitload

    if splitload(["train", job.path, *job.words]):
        raise SystemExit("the bundle could not be made")
    return {}


def _stock(job: TakeMemory) -> dict[str, int]:
    import onnxruntime as ort

    return _run(ort.InferenceSession(job.path, providers=["CPUExecutionProvider"]))


def _splitload(job: TakeMemory) -> dict[str, int]:
    from splitload import ParallelLoader

    return _run(ParallelLoader(job.path))


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
