"""Times graphs of rows in a fresh process, as the machines of a shared inference run them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from splitload.deploy.shared_run import piece_options
from splitload.measure.piece_jobs import TimePieces
from splitload.measure.running import values_of
from splitload.runtime.stock import python_module, stock_session


def answer(job: TimePieces, folder: Path) -> dict[str, Any]:
    """Return the seconds of each graph in each round; rounds go both ways by turns."""
    ort = python_module("pieces of an inference are timed")
    ready = []
    for piece in job.pieces:
        session = stock_session(str(folder / piece.graph), piece_options(ort, 1))
        ready.append((session, values_of(piece.inputs, folder, "numpy")))
    rounds_s: list[list[float]] = [[] for _ in ready]
    for session, values in ready:
        session.run(None, values)
    for number in range(job.rounds):
        for at in range(len(ready))[:: 1 if number % 2 == 0 else -1]:
            session, values = ready[at]
            start_s = time.perf_counter()
            session.run(None, values)
            rounds_s[at].append(time.perf_counter() - start_s)
    return {"rounds_s": rounds_s, "engine": "python", "runtime": ort.__version__}
