"""A server that is killed while it helps: `python -m splitload.studies.shared_faults [MODEL]`.

The server is a process of `splitload collaborate serve` on this machine, which is killed at random moments of shared
inferences, and started again. Each inference must be answered, rightly, and no later than the deadline after what the
device takes alone.
"""

from __future__ import annotations

import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.cache import user_cache
from splitload.base.errors import StageError
from splitload.base.scratch import scratch_folder
from splitload.collaborative.pieces import Pieces
from splitload.collaborative.shared_plan import SharedPlan
from splitload.collaborative.store import Planned, write
from splitload.commands.console import Console
from splitload.deploy.collaborator import Collaborator
from splitload.measure.process import python
from splitload.runtime.inputs import example_inputs
from splitload.studies.records import write_record
from splitload.studies.shared_subjects import subject
from splitload.studies.study import at_least, errors_in_one_line, study_parser

MODEL, KILLS = "zoo:mobilenet_v1", 200
DEADLINE_S, PATIENT_S = 0.5, 30.0
TOLERATED = 1e-4  # relative to the largest output: what answers of both may differ by from the device's alone
_ADDRESS = re.compile(r"tls://\S+")


class _Server:
    """The server's process, which is killed and started again at the same port."""

    def __init__(self, bundle: Path, cache: Path) -> None:
        self._bundle, self._cache, self._port = bundle, cache, "0"
        self.address = self.start()
        self._port = self.address.partition("/#")[0].rpartition(":")[2]

    def start(self) -> str:
        words = python("splitload.__main__", "collaborate", "serve", str(self._bundle), "--port", self._port)
        environment = {**os.environ, "SPLITLOAD_CACHE": str(self._cache)}
        self._child = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, encoding="utf-8")
        assert self._child.stderr is not None  # noqa: S101
        for line in self._child.stderr:
            if found := _ADDRESS.search(line):
                threading.Thread(target=self._child.stderr.read, daemon=True).start()
                return found[0]
        raise StageError("the server does not start")

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()


def row(model: str, kills: int, seed: int, folder: Path, console: Console) -> dict[str, Any]:
    """Return what came of so many inferences during which the server was killed."""
    chance = random.Random(seed)  # noqa: S311 - moments
    source, graph, bundle = subject(model, folder, console)
    pieces = Pieces(graph)
    levels = pieces.levels.levels
    middle = next(at for at in range(len(levels) // 3, len(levels)) if levels[at].num_rows > 4)
    rows = levels[middle].num_rows // 2
    plan = SharedPlan((0, middle, len(levels) - 1), (levels[0].num_rows, rows, 0), (2, 2))
    write(bundle, graph, pieces, [Planned(0.0, plan, 1.0)])
    server = _Server(bundle, folder / "cache")
    outcomes: list[dict[str, Any]] = []
    try:
        with Collaborator(bundle, None) as alone:
            feeds = example_inputs(alone.manifest.inputs, source.examples)
            expected = alone.run(None, feeds)
            alone_s = [_timed(alone, feeds)[1] for _ in range(9)]
        with (
            Collaborator(bundle, server.address, deadline_s=DEADLINE_S) as device,
            console.progress("killing the server", unit="times") as show,
        ):
            device.wait_for_server(PATIENT_S)
            shared_s = [_timed(device, feeds)[1] for _ in range(9)]
            usual_s = statistics.median(shared_s)
            for number in range(kills):
                show(number, kills)
                if not device.wait_for_server(PATIENT_S):
                    raise StageError("the device does not come back to the server")
                killer = threading.Timer(chance.random() * 1.2 * usual_s, server.kill)
                killer.start()
                try:
                    found, seconds = _timed(device, feeds)
                    last = device.last
                    outcomes.append(
                        {
                            "right": _is_right(found, expected),
                            "by": None if last is None else last.by,
                            "latency_s": seconds,
                        }
                    )
                except Exception as error:
                    outcomes.append({"right": False, "by": None, "latency_s": None, "error": str(error)[:200]})
                killer.join()
                server.start()
    finally:
        server.kill()
    return {
        "part": "kills", "model": model, "kills": kills, "seed": seed, "deadline_s": DEADLINE_S, "alone_s": alone_s,
        "shared_s": shared_s, "outcomes": outcomes,
    }  # fmt: skip


def _timed(model: Any, feeds: Any) -> tuple[list[Any], float]:
    start_s = time.perf_counter()
    found = model.run(None, feeds)
    return found, time.perf_counter() - start_s


def _is_right(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    return all(
        bool(np.abs(own - other).max() <= TOLERATED * np.abs(other).max())
        for own, other in zip(found, expected, strict=True)
    )


def line(row: dict[str, Any]) -> str:
    """Return what came of it, for people."""
    outcomes = row["outcomes"]
    right = sum(each["right"] for each in outcomes)
    alone = [each for each in outcomes if each["by"] == "device" and each["latency_s"] is not None]
    usual_s = statistics.median(row["alone_s"])
    added_s = max((each["latency_s"] - usual_s for each in alone), default=0.0)
    return (
        f"{right} of {len(outcomes)} answered rightly, {len(alone)} by the device alone; at most "
        f"{1e3 * added_s:.0f} ms later than alone, the deadline being {1e3 * row['deadline_s']:.0f} ms"
    )


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Kill the server; print what came of it, and perhaps record it; 1 where an answer was wrong or missing."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("shared_faults", __doc__)
    parser.add_argument("model", nargs="?", default=MODEL, metavar="MODEL", help="default: %(default)s")
    parser.add_argument("--kills", type=at_least(1), default=KILLS, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the moments (default: %(default)s)")
    options = parser.parse_args(words)
    console = Console(json=False)
    with scratch_folder(user_cache(), ".shared-") as folder:
        made = row(options.model, options.kills, options.seed, folder, console)
    console.print(line(made))
    if options.output:
        write_record(options.output, "shared_faults", "splitload.studies.shared_faults", words, [made])
    return 0 if all(each["right"] for each in made["outcomes"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
