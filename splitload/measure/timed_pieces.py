"""Times graphs and messages of rows in a fresh process, as the machines of a shared inference compute and send them."""

from __future__ import annotations

import math
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from splitload.deploy.channel import PROBE, WELCOME, Channel, prompt
from splitload.deploy.credentials import credentials
from splitload.deploy.greeting import Server, connect, greeted, serving_context
from splitload.deploy.shared_run import piece_options
from splitload.measure.piece_jobs import MOST_MESSAGE_BYTES, SAMPLE_S, TimeMessages, TimePieces
from splitload.measure.running import values_of
from splitload.runtime.stock import python_module, stock_session

_PATIENT_S = 30.0


def answer(job: TimePieces | TimeMessages, folder: Path) -> dict[str, Any]:
    """Return the seconds of each graph or message in each round; rounds go both ways by turns."""
    if isinstance(job, TimeMessages):
        with _loopback(folder) as trip:
            return {"rounds_s": _rounds_s([partial(trip, bytes(size)) for size in job.sizes], job.rounds)}
    ort = python_module("pieces of an inference are timed")
    runs = []
    for piece in job.pieces:
        session = stock_session(str(folder / piece.graph), piece_options(ort, 1))
        runs.append(partial(session.run, None, values_of(piece.inputs, folder, "numpy")))
    return {"rounds_s": _rounds_s(runs, job.rounds), "engine": "python", "runtime": ort.__version__}


def _rounds_s(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return the seconds of a call, of each in each round."""
    repeats = []
    for call in calls:
        call()
        repeats.append(math.ceil(SAMPLE_S / max(_taken_s(call, 2), 1e-6)))
    found: list[list[float]] = [[] for _ in calls]
    for number in range(rounds):
        for at in range(len(calls))[:: 1 if number % 2 == 0 else -1]:
            found[at].append(_taken_s(calls[at], repeats[at]))
    return found


def _taken_s(call: Callable[[], object], times: int) -> float:
    start_s = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start_s) / times


@contextmanager
def _loopback(folder: Path) -> Iterator[Callable[[bytes], object]]:
    """Give what sends bytes over a connection to this process itself, and receives them."""
    sides: list[Channel] = []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        own = credentials(Path(place) / "own", tls=True)
        context = serving_context(own)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as other:

        def served() -> Channel:
            sock, _ = listener.accept()
            prompt(sock)
            channel = Channel(sock, context, server_side=True)
            greeted(channel, own.code.token)
            channel.say(WELCOME)
            return channel

        waiting = other.submit(served)
        sides.append(connect(Server("127.0.0.1", listener.getsockname()[1], own.code)))
        sides.append(waiting.result())
    sender, receiver = sides
    receiver.expect(MOST_MESSAGE_BYTES)

    def trip(data: bytes) -> None:
        sender.send(PROBE, parts=[data])
        receiver.receive(_PATIENT_S)

    try:
        yield trip
    finally:
        for each in sides:
            each.close()
