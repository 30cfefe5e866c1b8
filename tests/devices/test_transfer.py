"""Files on their way to a device: each once, resumed where a link was cut, pieces copied that are there already."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from lying_devices import Answer, answering, connected
from service_threads import serving

from splitload.base.errors import DeviceError, StageError
from splitload.devices import transfer as module
from splitload.devices.connection import Connection
from splitload.devices.remote import RemoteMachine
from splitload.devices.transfer import Transfer
from splitload.studies.cut_links import cut_link

NUMBER = "0" * 32


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def write(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def send(device: Connection, transfer: Transfer, path: Path, number: str = NUMBER) -> None:
    """Place an order of one file, and send it until nothing is missing."""
    file = transfer.described(path.name, path)
    machine = RemoteMachine(device)
    machine.transfer = transfer
    body = {"files": [file._asdict()], "job": None, "cold": False}
    machine._send(number, body, {file: path})


def test_a_file_is_sent_once(tmp_path: Path) -> None:
    path = write(tmp_path, "a.bin", noise(1, 3_000_001))
    empty = write(tmp_path, "empty.bin", b"")
    with serving(tmp_path / "device") as url, connected(url) as device:
        transfer = Transfer(device)
        send(device, transfer, path)
        assert (transfer.sent_bytes, transfer.copied_bytes) == (3_000_001, 0)
        for number, each in ((1, path), (2, empty), (3, empty)):
            send(device, transfer, each, f"{number:032x}")
        assert transfer.sent_bytes == 3_000_001
        again = Transfer(device)  # another desk
        send(device, again, path, f"{4:032x}")
        assert again.sent_bytes == 0


def test_what_lies_in_another_file_is_copied_and_a_piece_may_end_within_a_chunk(tmp_path: Path) -> None:
    shared = noise(2, 2 << 20)
    first = write(tmp_path, "first.bin", shared)
    lengths = [64 * 17_000, 64 * 20_011, 64 * 501]  # more than a piece, whose end then lies within a chunk
    others = [write(tmp_path, f"{length}.bin", noise(length, length) + shared) for length in lengths]
    with serving(tmp_path / "device") as url, connected(url) as device:
        transfer = Transfer(device)
        send(device, transfer, first)
        before = transfer.sent_bytes
        for number, path in enumerate(others, 1):
            send(device, transfer, path, f"{number:032x}")
        assert transfer.copied_bytes > 0.9 * len(others) * len(shared)
        assert transfer.sent_bytes - before < sum(lengths) + 0.1 * len(others) * len(shared)


def test_what_came_before_a_link_was_cut_is_not_sent_again(tmp_path: Path) -> None:
    size = 12 << 20
    path = write(tmp_path, "a.bin", noise(3, size))
    drawn = random.Random(0)  # noqa: S311
    with (
        serving(tmp_path / "device") as url,
        cut_link(urlsplit(url).port or 0, lambda: drawn.randrange(100_000, 3 << 20)) as link,
        connected(f"http://127.0.0.1:{link.port}") as device,
    ):
        send(device, Transfer(device), path)
        assert link.cuts >= 4
        assert link.up_bytes <= size + link.cuts * (256 << 10)  # that were on their way, between the processes


def test_a_sample_waits_for_the_request_of_a_transfer_ahead(tmp_path: Path) -> None:
    path = write(tmp_path, "a.bin", noise(5, 1000))
    asked, goes_on, order = threading.Event(), threading.Event(), list[str]()

    def answer(*_: object) -> Answer:
        asked.set()
        assert goes_on.wait(20)
        order.append("received")
        return 200, [b'{"there": 1000}']

    with answering(answer) as url, connected(url) as device:
        transfer = Transfer(device)
        file = transfer.described("a.bin", path)
        sending = threading.Thread(target=transfer.send, args=({file: path}, {file.sha256: 0}), kwargs={"ahead": True})

        def sample() -> None:
            with transfer.going_first():
                order.append("sampled")

        sampling = threading.Thread(target=sample)
        sending.start()
        assert asked.wait(20)
        sampling.start()
        sampling.join(0.1)
        goes_on.set()
        for each in (sending, sampling):
            each.join(20)
    assert order == ["received", "sampled"]


def test_a_transfer_that_goes_on_is_never_given_up(tmp_path: Path) -> None:
    path = write(tmp_path, "a.bin", noise(6, 100_000))
    there, asked = [0], [0]

    def answer(method: str, place: str, body: bytes) -> Answer:
        asked[0] += 1
        there[0] += 500 if asked[0] % 2 else 0  # every other request brings it no further
        return 200, [b'{"there": %d}' % there[0]]

    with answering(answer) as url, connected(url) as device:
        transfer = Transfer(device)
        file = transfer.described("a.bin", path)
        transfer.send({file: path}, {file.sha256: 0})
    assert there == [100_000]


def test_pieces_become_smaller_on_a_link_that_takes_no_large_ones(tmp_path: Path) -> None:
    path = write(tmp_path, "a.bin", noise(4, 1 << 20))
    there = [0]
    sizes = []

    def answer(method: str, _: str, body: bytes) -> Answer:
        sizes.append(len(body))
        if len(body) > 300_000:
            raise ConnectionResetError
        there[0] += len(body)
        return 200, [json.dumps({"there": there[0]}).encode()]

    with answering(answer) as url, connected(url) as device:
        transfer = Transfer(device)
        file = transfer.described("a.bin", path)
        transfer.send({file: path}, {file.sha256: 0})
    assert there[0] == 1 << 20
    assert sizes[:5] == [1 << 20, 0, 1 << 19, 0, 1 << 18]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (-1, "says that it has -1"),
        (10**30, "says that it has"),
        (True, "says that it has True"),
        ("5", "says that it has '5'"),
        (None, "says that it has None"),
        (1.5, "says that it has 1.5"),
        (0, "keeps nothing of it"),
    ],
)
def test_a_device_that_lies_about_what_it_has(tmp_path: Path, said: object, words: str) -> None:
    path = write(tmp_path, "a.bin", noise(5, 1000))
    with (
        answering(lambda *_: (200, [json.dumps({"there": said}).encode()])) as url,
        connected(url) as device,
        pytest.raises(DeviceError, match=words),
    ):
        transfer = Transfer(device)
        file = transfer.described("a.bin", path)
        transfer.send({file: path}, {file.sha256: 0})


def test_a_file_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    with answering(lambda *_: (200, [b"{}"])) as url, connected(url) as device:
        transfer = Transfer(device)
        path = write(tmp_path, "a.bin", b"one")
        status = path.stat()
        first = transfer.described("a.bin", path)
        path.write_bytes(b"two")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert transfer.described("a.bin", path) != first


def test_a_file_that_shrinks_while_it_is_sent_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "pread", lambda *_: b"")
    path = write(tmp_path, "a.bin", noise(6, 1000))
    with (
        serving(tmp_path / "device") as url,
        connected(url) as device,
        pytest.raises(StageError, match="has become shorter"),
    ):
        send(device, Transfer(device), path)
