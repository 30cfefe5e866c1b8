"""Times graphs and messages of rows in a fresh process, as the machines of a shared inference compute and send them."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from splitload.deploy.channel import PROBE, WELCOME, Channel, prompt
from splitload.deploy.credentials import credentials
from splitload.deploy.greeting import Server, connect, greeted, serving_context
from splitload.deploy.shared_run import piece_options
from splitload.measure.piece_jobs import MOST_MESSAGE_BYTES, REPEATS, TimeMessages, TimePieces
from splitload.measure.running import values_of
from splitload.runtime.stock import python_module, stock_session

_PATIENT_S = 30.0
_CACHES_BYTES = 1 << 25


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
    """Return the seconds of a call, the mean of several, of each in each round.

    They are processor time, times what a second of it takes in the round. So a process that has a share of a processor,
    and all of it for a moment, takes as long for a short call as its share says. Before each call memory is read that
    no cache holds: in an inference the weights of everything else are.
    """
    memory = np.ones(_CACHES_BYTES // 8)
    for call in calls:
        call()
    found: list[list[float]] = [[] for _ in calls]
    for number in range(rounds):
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        for at in range(len(calls))[:: 1 if number % 2 == 0 else -1]:
            found[at].append(_cpu_s(calls[at], memory))
        slower = (time.perf_counter() - begun_s) / (time.process_time() - begun_cpu_s)
        for each in found:
            each[-1] *= slower
    return found


def _cpu_s(call: Callable[[], object], memory: np.ndarray[Any, Any]) -> float:
    taken_s = 0.0
    for _ in range(REPEATS):
        memory.sum()
        start_s = time.process_time()
        call()
        taken_s += time.process_time() - start_s
    return taken_s / REPEATS


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
