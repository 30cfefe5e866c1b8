"""The service of a device over real HTTP: who may ask, what is refused, and that nobody is held up by anybody."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from service_threads import DEVICE, client, serving

from splitload.deploy import deadlines, orders, serve

DATA = b"0123456789" * 100
SHA256 = hashlib.sha256(DATA).hexdigest()
FILE = {"name": "x.bin", "bytes": len(DATA), "sha256": SHA256}
ORDER = {"files": [], "job": None, "cold": False}


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[httpx.Client]:
    with serving(tmp_path) as url, client(url) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """One for tests that leave no trace in it."""
    with serving(tmp_path_factory.mktemp("shared")) as url, client(url) as made:
        yield made


def _is_cut(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def number(place: int = 1) -> str:
    return f"{place:032x}"


def test_an_order_from_its_files_to_what_it_made(tmp_path: Path) -> None:
    def answer(job: Any, folder: Path, tell: Any, stop: Any) -> dict[str, Any]:
        (folder / "made.npy").write_bytes(b"made")
        tell({"event": "throttled", "reason": "hot"})
        return {"read": (folder / "x.bin").stat().st_size}

    with serving(tmp_path, answer) as url, client(url) as asked:
        assert asked.get("/v1/device").json()["name"] == DEVICE["name"]
        order = {"files": [FILE], "job": {"kind": "x"}, "cold": False}
        placed = asked.put(f"/v1/orders/{number()}", json=order).json()
        assert placed == {"state": "files", "ahead": 0, "missing": {SHA256: 0}}
        assert asked.put(f"/v1/files/{SHA256}?start=0", content=DATA[:400]).json() == {"there": 400}
        assert asked.put(f"/v1/files/{SHA256}?start=0", content=DATA[:400]).json() == {"there": 400}  # sent twice
        assert asked.put(f"/v1/orders/{number()}", json=order).json()["missing"] == {SHA256: 400}
        assert asked.put(f"/v1/files/{SHA256}?start=400", content=DATA[400:]).json() == {"there": len(DATA)}
        asked.put(f"/v1/orders/{number()}", json=order)
        with asked.stream("GET", f"/v1/orders/{number()}/events") as stream:
            events = [json.loads(line) for line in stream.iter_lines()]
        assert [each["event"] for each in events if each["event"] != "beat"] == [
            "queued", "running", "throttled", "done",
        ]  # fmt: skip
        assert events[-1] == {"event": "done", "answer": {"read": len(DATA)}, "made": ["made.npy"]}
        seen = asked.get(f"/v1/orders/{number()}/events?seen=3").text
        assert json.loads(seen) == events[-1]
        assert asked.get(f"/v1/orders/{number()}/files/made.npy").content == b"made"
        assert asked.get(f"/v1/orders/{number()}/files/x.bin").status_code == 404
        assert asked.delete(f"/v1/orders/{number()}").json() == {}
        assert asked.get(f"/v1/orders/{number()}/events").status_code == 404


def test_pieces_of_other_files_are_copied(asked: httpx.Client) -> None:
    asked.put(f"/v1/orders/{number()}", json={**ORDER, "files": [FILE]})
    asked.put(f"/v1/files/{SHA256}?start=0", content=DATA)
    whole = DATA[500:] + DATA[:500]
    other = {"name": "y", "bytes": len(DATA), "sha256": hashlib.sha256(whole).hexdigest()}
    asked.put(f"/v1/orders/{number(2)}", json={**ORDER, "files": [other]})
    pieces = [[SHA256, 500, 500], [SHA256, 0, 500]]
    assert asked.post(f"/v1/files/{other['sha256']}/copies?start=0", json=pieces).json() == {"there": 1000}
    assert asked.put(f"/v1/orders/{number(2)}", json={**ORDER, "files": [other]}).json()["state"] == "done"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"files": [], "job": null, "cold": NaN}', "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[]", "must be an object"),
        (b'{"files": [], "job": null}', "cold is missing"),
        (b'{"files": [], "job": null, "cold": false, "code": "import os"}', "unknown keys"),
        (b'{"files": [], "job": [], "cold": false}', "job must be an object"),
        (json.dumps({**ORDER, "job": {"kind": "bad"}}).encode(), "it is bad"),
        *[
            (json.dumps({**ORDER, "files": [{**FILE, "name": name}]}).encode(), "no name of a file inside a folder")
            for name in ("../x", "/etc/passwd", "a/../b", "", "a\\b", "a\nb", "a" * 2000, ".", "a/b/c/d/e", "\ud800")
        ],
        *[
            (json.dumps({**ORDER, "files": [{**FILE, "name": name} for name in names]}).encode(), "a name twice")
            for names in (("a", "a"), ("a", "a/b"), ("a/b/c", "a/b"))
        ],
        (json.dumps({**ORDER, "files": [{**FILE, "bytes": -1}]}).encode(), "must be a count"),
        (json.dumps({**ORDER, "files": [{**FILE, "bytes": 1 << 60}]}).encode(), "at most"),
        (json.dumps({**ORDER, "files": [{**FILE, "sha256": "A" * 64}]}).encode(), "must be a SHA-256"),
        (json.dumps({**ORDER, "files": [FILE] * 5000}).encode(), "5000 entries"),
    ],
)
def test_what_is_no_order_is_refused_in_one_line(shared: httpx.Client, body: bytes, words: str) -> None:
    answer = shared.put(f"/v1/orders/{number()}", content=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert len(answer.json()["error"]) <= 500


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/orders/x/events", 404),
        ("GET", f"/v1/orders/{number()}/events", 404),
        ("GET", f"/v1/orders/{number()}/events?seen=-1", 400),
        ("GET", f"/v1/orders/{number()}/files/..%2f..%2ftoken", 404),
        ("PUT", f"/v1/files/{SHA256}?start=0", 404),
        ("PUT", f"/v1/files/{'..%2f' * 20}?start=0", 404),
        ("PUT", f"/v1/files/{SHA256}", 404),
        ("POST", f"/v1/files/{SHA256}/copies?start=9007199254740992", 404),
        ("POST", "/v1/device", 405),
    ],
)
def test_what_is_not_there_is_refused(shared: httpx.Client, method: str, path: str, status: int) -> None:
    answer = shared.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_pieces_have_limits(asked: httpx.Client, tmp_path: Path) -> None:
    asked.put(f"/v1/orders/{number()}", json={**ORDER, "files": [FILE]})
    place = f"/v1/files/{SHA256}"
    assert asked.put(f"{place}?start=0", content=bytes(serve.MOST_PIECE_BYTES + 1)).status_code == 413
    assert asked.put(f"{place}?start=9007199254740992", content=b"x").status_code == 400
    assert asked.put(f"{place}?start=0", content=DATA + b"more").json() == {"there": 0}
    assert asked.post(f"{place}/copies?start=0", json=[["../../token", 0, 1]]).status_code == 400
    assert asked.post(f"{place}/copies?start=0", json=[[SHA256, 0, 1 << 62]]).json() == {"there": 0}
    assert asked.put(f"{place}?start=0", content=bytes(len(DATA))).status_code == 409  # damaged
    large = {"name": "y", "bytes": 2 << 30, "sha256": "0" * 64}
    refused = asked.put(f"/v1/orders/{number(2)}", json={**ORDER, "files": [large]})
    assert (refused.status_code, "lacks" in refused.json()["error"]) == (507, True)


def test_wrong_tokens_have_to_wait_and_the_right_one_has_not(tmp_path: Path) -> None:
    with serving(tmp_path) as url, client(url, "wrong") as wrong, client(url) as right:
        found = [wrong.get("/v1/device").status_code for _ in range(serve.WRONG_TOKENS + 2)]
        assert found == [401] * serve.WRONG_TOKENS + [429] * 2
        assert 0 < int(wrong.get("/openapi.json").headers["Retry-After"]) <= serve.WRONG_S + 1
        assert right.get("/v1/device").status_code == 200
        for word in ("", "Bearer", "Basic " + "a" * 26, "Bearer é"):
            answer = httpx.get(f"{url}/v1/device", headers={"Authorization": word.encode("latin-1")}, trust_env=False)
            assert answer.status_code == 429


def test_too_many_requests_are_asked_to_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "REQUESTS", 5)
    with serving(tmp_path) as url, client(url) as asked:
        assert [asked.get("/openapi.json").status_code for _ in range(6)] == [200] * 5 + [429]


def test_addresses_that_are_counted_do_not_fill_the_memory() -> None:
    limit = serve.Limit(2, 60)
    for place in range(3000):
        limit.count(f"{place}")
    assert limit.wait_s("2999") == 0
    limit.count("2999")
    assert limit.wait_s("2999") > 0
    assert len(limit._counts) <= 1024


def test_clients_that_send_no_request_take_no_place_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "REQUEST_S", 0.3)
    with serving(tmp_path, most_at_once=5) as url, contextlib.ExitStack() as opened:
        parts = urlsplit(url)
        address = (parts.hostname or "", parts.port or 0)
        silent = [opened.enter_context(socket.create_connection(address, 20)) for _ in range(6)]
        for each in silent:
            each.sendall(b"GET /v1/device HTTP/1.1\r\nX: ")  # and nothing more
        assert all(map(_is_cut, silent))
        with client(url) as asked:
            assert asked.get("/v1/device").status_code == 200


def test_a_body_that_stops_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "BODY_S", 0.2)
    with serving(tmp_path) as url, client(url) as asked:

        def body() -> Iterator[bytes]:
            yield b"{"
            time.sleep(1)
            yield b"}"

        with contextlib.suppress(httpx.TransportError):  # it may close before all is sent
            assert asked.put(f"/v1/orders/{number()}", content=body()).status_code == 408


def test_a_stream_that_breaks_goes_on_and_beats_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "BEAT_S", 0.05)
    go = threading.Event()
    with serving(tmp_path, lambda *_: {"went": go.wait(20)}) as url, client(url) as asked:
        asked.put(f"/v1/orders/{number()}", json={**ORDER, "job": {}})
        with asked.stream("GET", f"/v1/orders/{number()}/events") as stream:
            lines = stream.iter_lines()
            kinds = [json.loads(next(lines))["event"] for _ in range(4)]
        assert kinds == ["queued", "running", "beat", "beat"]
        go.set()
        with asked.stream("GET", f"/v1/orders/{number()}/events?seen=2") as stream:
            events = [json.loads(line) for line in stream.iter_lines()]
        assert events[-1]["answer"] == {"went": True}


def test_orders_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "MOST_ORDERS", 2)
    with serving(tmp_path) as url, client(url) as asked:
        assert [asked.put(f"/v1/orders/{number(place)}", json=ORDER).status_code for place in range(3)] == [
            200, 200, 429,
        ]  # fmt: skip


def test_a_disk_that_refuses_is_no_crash(tmp_path: Path) -> None:
    with serving(tmp_path) as url, client(url) as asked:
        asked.put(f"/v1/orders/{number()}", json={**ORDER, "files": [FILE]})
        (tmp_path / "files" / "files").rename(tmp_path / "gone")
        answer = asked.put(f"/v1/files/{SHA256}?start=0", content=DATA)
        assert (answer.status_code, answer.json().keys()) == (507, {"error"})
        assert asked.put(f"/v1/orders/{number(2)}", json={**ORDER, "files": [FILE]}).status_code == 507
        assert asked.get("/openapi.json").status_code == 200
