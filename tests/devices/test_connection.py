"""A desk's connection: what breaks is tried again, what is silent for long is gone, and no answer is without end."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from lying_devices import Answer, answering, connected

from splitload.base.errors import DeviceError, OutputError
from splitload.deploy.credentials import Code
from splitload.devices import connection as module
from splitload.devices.connection import Connection, RefusedError
from splitload.devices.pairing import Address

OK = b'{"ok": 1}'


def test_a_request_that_breaks_is_sent_again_and_its_content_is_made_again() -> None:
    tries: list[bytes] = []

    def answer(_: str, __: str, body: bytes) -> Answer:
        tries.append(body)
        if len(tries) < 3:
            raise ConnectionResetError
        return 200, [OK]

    contents = itertools.count()
    with answering(answer) as url, connected(url) as device:
        assert device.ask("PUT", "/x", content=lambda: b"%d" % next(contents)) == {"ok": 1}
    assert tries == [b"0", b"1", b"2"]


def test_a_device_that_asks_to_come_again_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = [0.0], []

    class Clock:
        monotonic = staticmethod(lambda: now[0])

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(module, "time", Clock)
    answers = iter([(200, [OK]), *[(429, [b'{"error": "64 orders are open"}'])] * 20, (200, [OK])])
    with answering(lambda *_: next(answers), Retry_After="7") as url:
        device = Connection(Address(url, Code("a" * 26, None)), sleep=sleep)
        device.ask("GET", "/x")
        assert device.ask("GET", "/x") == {"ok": 1}
        device.close()
    assert waits == [7.0] * 20  # 140 seconds, in which it has answered again and again


def test_a_device_that_asks_to_come_again_much_later_is_not_waited_for_at_the_first_contact() -> None:
    with answering(lambda *_: (429, [b'{"error": "too many wrong tokens"}']), Retry_After="61") as url:
        device = Connection(Address(url, Code("a" * 26, None)))
        with pytest.raises(DeviceError, match="asks to come again in 61 s: too many wrong tokens"):
            device.ask("GET", "/x")
        device.close()


def test_silence_counts_from_the_request_on_and_not_from_the_answer_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Clock:
        monotonic = staticmethod(lambda: now[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(module, "time", Clock)
    fail = [0]

    def answer(*_: object) -> Answer:
        fail[0] -= 1
        if fail[0] >= 0:
            raise ConnectionResetError
        return 200, [OK]

    with answering(answer) as url:
        device = Connection(Address(url, Code("a" * 26, None)), sleep=sleep)
        device.ask("GET", "/x")
        now[0] += 3600  # the desk searches
        fail[0] = 3
        assert device.ask("GET", "/x") == {"ok": 1}
        fail[0] = 1 << 30
        began_s = now[0]
        with pytest.raises(DeviceError, match=r"has not answered for \d+ s .* what was measured so far is kept"):
            device.ask("GET", "/x")
        assert module.PATIENCE_S - module._LONGEST_PAUSE_S <= now[0] - began_s <= module.PATIENCE_S
        began_s = now[0]
        with pytest.raises(DeviceError):
            device.ask("DELETE", "/x", patience_s=3.0)
        assert now[0] - began_s <= 3.0
        device.close()


def test_a_place_where_nothing_ever_answered_is_given_up_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(module, "CONTACT_S", 0.3)
    with (
        connected(f"http://127.0.0.1:{port}", patience_s=60) as device,
        pytest.raises(DeviceError, match=r"refused.* at this port"),
    ):
        device.ask("GET", "/x")
    with pytest.raises(DeviceError, match=r"refused.* at this port"):
        Connection(Address(f"https://127.0.0.1:{port}", Code("a" * 26, "0" * 32)))


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"[]", "no JSON object"),
        (200, b"<html>", "no JSON object"),
        (200, b"[" * 100_000, "no JSON object"),
        (200, b"1" * 10_000, "no JSON object"),
        (200, b" " * (module._MOST_JSON_BYTES + 1), "more than anything"),
        (401, b"", "does not take the code"),
        (404, b"x" * (module._MOST_JSON_BYTES + 1), "more than anything"),
        (400, b'{"error": "a\\nb\\u001b[31m"}', r"refuses: a b \[31m"),
        (500, b"", "HTTP status 500"),
        (302, b"", "HTTP status 302"),
    ],
)
def test_answers_that_are_none(status: int, body: bytes, words: str) -> None:
    with (
        answering(lambda *_: (status, [body]), Location="http://127.0.0.1:9/") as url,
        connected(url) as device,
        pytest.raises(DeviceError, match=words),
    ):
        device.ask("GET", "/x")


def test_an_answer_that_is_packed_is_not_unpacked() -> None:
    import gzip

    with (
        answering(lambda *_: (200, [gzip.compress(OK)]), Content_Encoding="gzip") as url,
        connected(url) as device,
        pytest.raises(DeviceError, match="no JSON object"),
    ):
        device.ask("GET", "/x")


def test_a_stream_goes_on_behind_the_last_event() -> None:
    asked = []

    def answer(_: str, path: str, __: bytes) -> Answer:
        asked.append(path)
        seen = int(path.partition("=")[2])
        if seen == 0:
            return 200, _then_broken(b'{"event": "a"}\n{"event": "beat"}\n{"ev')
        return 200, [b'{"event": "b"}\n', b"{}\n"]

    with answering(answer) as url, connected(url) as device:
        assert [event.get("event") for event in device.lines("/x")] == ["a", "beat", "b", None]
    assert asked == ["/x?seen=0", "/x?seen=1"]


def _then_broken(chunk: bytes) -> Iterator[bytes]:
    yield chunk
    raise ConnectionResetError


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([b"[]\n"], "no event"),
        ([b"{\n"], "no event"),
        ([b"\n"], "no event"),
        ([b'{"x": ' + b"[" * 100_000 + b"\n"], "no event"),
        ([b"x" * (1 << 20)] * 17, "a line without an end"),
        ([b'{"event": "a"}\n' * 20_000], "more than can happen"),
    ],
)
def test_streams_that_are_none(chunks: list[bytes], words: str) -> None:
    with answering(lambda *_: (200, chunks)) as url, connected(url) as device, pytest.raises(DeviceError, match=words):
        list(device.lines("/x"))


def test_a_file_is_fetched_whole_or_not_at_all(tmp_path: Path) -> None:
    tries = iter([_then_broken(b"ha"), [b"whole"], [b"much" * 100], [b"whole"]])
    secret = tmp_path / "model.onnx"
    secret.write_bytes(b"mine")
    (tmp_path / "output-0.npy").symlink_to(secret)
    with answering(lambda *_: (200, next(tries))) as url, connected(url) as device:
        device.fetch("/x", tmp_path / "output-0.npy", 100)
        assert (tmp_path / "output-0.npy").read_bytes() == b"whole"
        assert secret.read_bytes() == b"mine"
        with pytest.raises(DeviceError, match="sends more than 100 bytes"):
            device.fetch("/x", tmp_path / "output-1.npy", 100)
        with pytest.raises(OutputError, match="cannot write"):
            device.fetch("/x", tmp_path / "missing" / "output-1.npy", 100)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "output-0.npy"]


def test_a_file_goes_on_where_the_connection_broke(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4
    starts: list[int] = []

    def answer(_: str, path: str, __: bytes) -> Answer:
        starts.append(start := int(path.partition("bytes=")[2].rstrip("-") or 0))
        end = start + 400
        return 206 if start else 200, _then_broken(data[start:end]) if end < len(data) else [data[start:]]

    with answering(answer) as url, connected(url) as device:
        device.fetch("/x", tmp_path / "output-0.npy", 2000)
        assert (tmp_path / "output-0.npy").read_bytes() == data
        assert starts == [0, 399, 798]
    with (
        answering(lambda *_: (200, _then_broken(b"x"))) as url,
        connected(url, patience_s=0.3) as device,
        pytest.raises(DeviceError, match="has not answered for"),
    ):
        device.fetch("/x", tmp_path / "output-1.npy", 2000)  # which comes no further


def test_one_that_is_closed_meanwhile_is_one_line() -> None:
    began = threading.Event()

    def answer(*_: object) -> Answer:
        began.set()
        raise ConnectionResetError

    with answering(answer) as url, connected(url) as device:
        threading.Thread(target=lambda: (began.wait(20), device.close())).start()
        with pytest.raises(DeviceError, match="was closed"):
            device.ask("GET", "/x")
        with pytest.raises(DeviceError, match="was closed"):
            device.ask("GET", "/x")


def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    heard = []
    with (
        answering(lambda *asked: (200, [json.dumps({"n": heard.append(asked)}).encode()])) as url,
        connected(url) as it,
    ):
        it.ask("GET", "/x")
    assert heard


def test_a_refusal_says_its_status() -> None:
    with answering(lambda *_: (507, [b'{"error": "full"}'])) as url, connected(url) as device:
        with pytest.raises(RefusedError) as caught:
            device.ask("PUT", "/x", content=bytes)
        assert caught.value.status == 507
