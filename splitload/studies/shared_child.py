"""What an emulated machine that shares inferences does: `python -m splitload.studies.shared_child WHAT JSON`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.errors import DeviceError
from splitload.bundle.read import read_manifest
from splitload.deploy.collaborator import Collaborator
from splitload.deploy.share_bench import PATIENT_S, UNMEASURED, compare
from splitload.frontends import open_source
from splitload.measure.job import read_job
from splitload.measure.piece_jobs import SHARING_JOBS, TimeMessages, TimePieces
from splitload.measure.timed_pieces import answer
from splitload.runtime.inputs import example_inputs


def timed(message: Any, folder: str) -> dict[str, Any]:
    """Return the answer to a job on a shared inference, whose files lie in a folder."""
    job = read_job(message, SHARING_JOBS)
    assert isinstance(job, TimePieces | TimeMessages)  # noqa: S101 - there are no others
    return answer(job, Path(folder))


def runs(bundle: str, model: str, server: str, rounds: int, arms: list[str]) -> dict[str, Any]:
    """Return the latencies of inferences by each arm of a bundle's collaboration, in turns, and how they were answered.

    Args:
        bundle: The bundle.
        model: What it was made of.
        server: Its address.
        rounds: Inferences of each.
        arms: Their names.
    """
    source = open_source(model, user_cache())
    feeds = example_inputs(read_manifest(bundle).inputs, source.examples)
    found = compare(bundle, server, feeds, rounds, arms=arms)
    samples = {name: [each._asdict() for each in rows] for name, rows in found.samples.items()}
    moments = [each._asdict() for each in found.moments]
    return {"samples": samples, "bytes_per_s": found.bytes_per_s, "moments": moments}


def replay(
    bundle: str, model: str, server: str, arm: str, deadline_s: float | None, begun: str, seconds: float
) -> list[dict[str, Any]]:
    """Answer one inference after the other for a while, and return when each began, what it took, and who did it.

    Args:
        bundle: The bundle.
        model: What it was made of.
        server: Its address.
        arm: Of the collaboration's plans.
        deadline_s: When the device gives a shared inference up; None for the rule of the product.
        begun: A file that is made when the first one begins.
        seconds: How long.
    """
    feeds = example_inputs(read_manifest(bundle).inputs, open_source(model, user_cache()).examples)
    found: list[dict[str, Any]] = []
    with Collaborator(bundle, server, arm=arm, deadline_s=deadline_s) as loader:
        loader.wait("loaded")
        if not loader.wait_for_server(PATIENT_S):
            raise DeviceError(f"the server does not help: {loader.why_alone}")
        for _ in range(UNMEASURED):
            loader.run(None, feeds)
        Path(begun).touch()
        start_s = time.perf_counter()
        while (at_s := time.perf_counter() - start_s) < seconds:
            loader.run(None, feeds)
            if (last := loader.last) is not None:
                found.append(
                    {"at_s": at_s, "latency_s": last.latency_s, "by": last.by, "bytes_per_s": last.bytes_per_s}
                )
    return found


def main() -> None:
    """Do what the first argument names with what the second says; print what comes of it."""
    what, words = sys.argv[1:]
    tasks: dict[str, Callable[..., Any]] = {"timed": timed, "runs": runs, "replay": replay}
    print(json.dumps(tasks[what](**json.loads(words))))  # noqa: T201


if __name__ == "__main__":
    sys.path[:] = [each for each in sys.path if Path(each) != Path(__file__).parent]
    main()
