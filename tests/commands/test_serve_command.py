"""`splitload serve` as a process: what it shows, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from served_devices import Served, served

from splitload.devices.connection import Connection
from splitload.devices.pairing import read_address
from splitload.measure.process import python


def serve(cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SPLITLOAD_CACHE": str(cache)}
    command = python("splitload.__main__", "serve", *words)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_it_is_the_same_device_after_a_start_and_no_two_at_once(tmp_path: Path) -> None:
    with served(tmp_path / "device") as first:
        with_tls = Connection(read_address(first.url, tmp_path / "desk"))
        said = with_tls.ask("GET", "/v1/device")
        assert (said["name"], said["threads"] >= 1) == ("board", True)
        with_tls.close()
        second = serve(tmp_path / "device", "--port", "0", "--new-code")
        assert (second.returncode, "another process of this machine has it" in " ".join(second.stderr.split())) == (
            1,
            True,
        )
        first.kill()
        again = Served(tmp_path / "device")
        assert again.url.partition("#")[2] == first.url.partition("#")[2]  # not changed by the one that could not begin
        again.close()


def test_what_it_refuses_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for words, message, code in (
            (["--http", "--host", "0.0.0.0"], "shows the token and all models to the network", 2),  # noqa: S104
            (["--host", "board.local"], "--host takes an address", 2),
            (["--announce"], "listens on loopback alone", 2),
            (["--name", "a b"], "give --name", 2),
            (["--port", str(taken.getsockname()[1])], "cannot listen at 127.0.0.1", 2),
        ):
            done = serve(tmp_path, *words)
            assert (done.returncode, done.stdout) == (code, "")
            assert message in " ".join(done.stderr.split())
            assert "Traceback" not in done.stderr


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_good_order(sign: signal.Signals, tmp_path: Path) -> None:
    environment = {**os.environ, "SPLITLOAD_CACHE": str(tmp_path / "device")}
    command = python("splitload.__main__", "serve", "--port", "0", "--name", "board", "--http", "--json")
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as child:
        assert child.stderr is not None
        url = next(line for line in child.stderr if "--device" in line).split("'")[1]
        device = Connection(read_address(url, tmp_path / "desk"))
        device.ask("GET", "/v1/device")  # it serves by now
        device.close()
        child.send_signal(sign)
        out, errors = child.communicate(timeout=30)
    assert (child.returncode, json.loads(out)) == (0, {"name": "board", "served": True})
    assert "Traceback" not in errors
