"""What carries rows quicker, our channel over TLS or ZeroMQ with CURVE keys: `python -m splitload.studies.share_wire`.

Both are authenticated and encrypted, on loopback, between two threads of this process. A message of each size goes one
way and an empty answer comes back, in turns. pyzmq must be installed.
"""

from __future__ import annotations

import importlib
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.packages import need
from splitload.base.scratch import scratch_folder
from splitload.commands.console import Console
from splitload.deploy.channel import BEGIN, ECHO, PROBE, WELCOME, Channel
from splitload.deploy.credentials import credentials
from splitload.deploy.greeting import Server, connect, greeted, serving_context
from splitload.studies.records import write_record
from splitload.studies.study import at_least, errors_in_one_line, study_parser

SIZES = (1_000, 60_000, 600_000, 3_000_000)
RUNS = 30
Trip = Callable[[bytes], None]


@contextmanager
def tls(folder: Path) -> Iterator[Trip]:
    """Give what sends bytes over our channel and waits for the answer."""
    own = credentials(folder / "own", tls=True)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        channel = Channel(sock, serving_context(own), server_side=True)
        greeted(channel, own.code.token)
        channel.say(WELCOME)
        while channel.receive().kind == PROBE:
            channel.send(ECHO)
        channel.close(1.0)

    thread = threading.Thread(target=serve)
    thread.start()
    channel = connect(Server("127.0.0.1", listener.getsockname()[1], own.code))

    def trip(data: bytes) -> None:
        channel.send(PROBE, parts=[data])
        channel.receive()

    yield trip
    channel.send(BEGIN)
    thread.join()
    channel.close()
    listener.close()


@contextmanager
def zmq_curve(_: Path) -> Iterator[Trip]:
    """Give what sends bytes by ZeroMQ with CURVE keys and waits for the answer."""
    zmq: Any = importlib.import_module("zmq")  # whether it is installed where types are checked or not
    context = zmq.Context()
    public, secret = zmq.curve_keypair()
    own_public, own_secret = zmq.curve_keypair()
    server, client = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    server.curve_server, server.curve_secretkey, server.curve_publickey = True, secret, public
    client.curve_serverkey, client.curve_secretkey, client.curve_publickey = public, own_secret, own_public
    port = server.bind_to_random_port("tcp://127.0.0.1")
    client.connect(f"tcp://127.0.0.1:{port}")

    def serve() -> None:
        while len(server.recv(copy=False).buffer):
            server.send(b"")

    thread = threading.Thread(target=serve)
    thread.start()

    def trip(data: bytes) -> None:
        client.send(data, copy=False)
        client.recv()

    yield trip
    client.send(b"")
    thread.join()
    for each in (client, server):
        each.close(0)
    context.term()


ARMS = {"tls": tls, "zmq-curve": zmq_curve}


def rows(runs: int, folder: Path) -> list[dict[str, Any]]:
    """Return the seconds of trips of each size by each arm, in turns; two of each come before."""
    found = []
    with ExitStack() as opened:
        trips = {name: opened.enter_context(arm(folder)) for name, arm in ARMS.items()}
        for size in SIZES:
            data, samples = bytes(size), {name: list[float]() for name in trips}
            for number in range(-2, runs):
                for name in list(trips)[:: 1 if number % 2 else -1]:
                    start_s = time.perf_counter()
                    trips[name](data)
                    if number >= 0:
                        samples[name].append(time.perf_counter() - start_s)
            found.append({"bytes": size, "trips_s": samples})
    return found


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Measure both; print what came of it, and perhaps record it."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("share_wire", __doc__)
    parser.add_argument("--runs", type=at_least(1), default=RUNS, metavar="N", help="of each (default: %(default)s)")
    options = parser.parse_args(words)
    need("this study", "zmq")
    console = Console(json=False)
    with scratch_folder(user_cache(), ".wire-") as folder:
        made = rows(options.runs, folder)
    console.table(
        "one way and an empty answer back, median ms",
        ("bytes", *ARMS, "tls ÷ zmq-curve"),
        [
            (
                str(row["bytes"]),
                *(f"{1e3 * statistics.median(row['trips_s'][name]):.2f}" for name in ARMS),
                f"{_median(row, 'tls') / _median(row, 'zmq-curve'):.2f}",
            )
            for row in made
        ],
    )
    if options.output:
        write_record(options.output, "share_wire", "splitload.studies.share_wire", words, made)
    return 0


def _median(row: dict[str, Any], name: str) -> float:
    return float(statistics.median(row["trips_s"][name]))


if __name__ == "__main__":
    raise SystemExit(main())
