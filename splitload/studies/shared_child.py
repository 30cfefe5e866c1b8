"""What an emulated machine that shares inferences does: `python -m splitload.studies.shared_child WHAT JSON`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.bundle.read import read_manifest
from splitload.deploy.share_bench import compare
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


def runs(bundle: str, model: str, server: str, rounds: int) -> dict[str, Any]:
    """Return the latencies of inferences by each arm of a bundle's collaboration, in turns, and how they were answered.

    Args:
        bundle: The bundle.
        model: What it was made of.
        server: Its address.
        rounds: Inferences of each.
    """
    source = open_source(model, user_cache())
    feeds = example_inputs(read_manifest(bundle).inputs, source.examples)
    found = compare(bundle, server, feeds, rounds)
    samples = {name: [each._asdict() for each in rows] for name, rows in found.samples.items()}
    moments = [each._asdict() for each in found.moments]
    return {"samples": samples, "bytes_per_s": found.bytes_per_s, "moments": moments}


def main() -> None:
    """Do what the first argument names with what the second says; print what comes of it."""
    what, words = sys.argv[1:]
    tasks: dict[str, Callable[..., Any]] = {"timed": timed, "runs": runs}
    print(json.dumps(tasks[what](**json.loads(words))))  # noqa: T201


if __name__ == "__main__":
    sys.path[:] = [each for each in sys.path if Path(each) != Path(__file__).parent]
    main()
