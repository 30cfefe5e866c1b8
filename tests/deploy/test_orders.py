"""Orders of a served device: one job at a time, in turn; what is ended, forgotten or damaged holds up nobody."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from service_threads import FakeWork

from splitload.base.errors import OutputError, StageError, UsageError
from splitload.bundle.manifest import File
from splitload.deploy import orders as module
from splitload.deploy.orders import FullError, Order, Orders, OtherOrderError, UnknownOrderError
from splitload.deploy.stage_cache import StageCache

DATA = b"x" * 1000
Made = Callable[..., Orders]


def file(name: str, data: bytes = DATA) -> File:
    return File(name, len(data), hashlib.sha256(data).hexdigest())


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[StageCache]:
    made = StageCache(tmp_path / "files", 2500)
    yield made
    made.close()


@pytest.fixture
def make(cache: StageCache, tmp_path: Path) -> Iterator[Made]:
    made: list[Orders] = []

    def one(answer: Any = lambda job, *_: {"of": job}) -> Orders:
        made.append(Orders(cache, tmp_path / "jobs", FakeWork(answer), lambda: None))
        return made[-1]

    yield one
    for each in made:
        each.close()


def number(place: int) -> str:
    return f"{place:032x}"


def until(orders: Orders, which: str, *states: str) -> Order:
    """Wait for an order; nobody's figure hangs on how long that takes."""
    for _ in range(2000):
        order = orders.find(which)
        if order.state in states:
            return order
        time.sleep(0.005)
    raise AssertionError(order.state)


def send(orders: Orders, cache: StageCache, which: str, order: Order, data: bytes = DATA) -> None:
    _, missing = orders.place(which, order)
    for each in order.files:
        if each.sha256 in missing:
            cache.write(each, missing[each.sha256], data[missing[each.sha256] :])
    assert orders.place(which, Order(order.files, order.job, order.cold))[1] == {}


def test_a_job_waits_for_its_files_and_is_done_once(make: Made, cache: StageCache, tmp_path: Path) -> None:
    seen = []

    def answer(job: Any, folder: Path, *_: Any) -> dict[str, Any]:
        seen.append((folder / "a" / "b.bin").read_bytes())
        (folder / "made.npy").write_bytes(b"made")
        return {"of": job["n"]}

    orders = make(answer)
    order = Order([file("a/b.bin")], {"n": 1}, False)
    found, missing = orders.place(number(1), order)
    assert (found.state, missing) == ("files", {order.files[0].sha256: 0})
    send(orders, cache, number(1), order)
    done = until(orders, number(1), "done")
    assert orders.place(number(1), Order(order.files, {"n": 1}, False))[0] is done  # as a client that asks again does
    assert [event["event"] for event in done.events] == ["queued", "running", "done"]
    assert (done.events[-1]["answer"], done.made, seen) == ({"of": 1}, ["made.npy"], [DATA])
    assert orders.place_of(number(1), "made.npy").read_bytes() == b"made"
    for name in ("../made.npy", "a/b.bin", ""):
        with pytest.raises(UnknownOrderError):
            orders.place_of(number(1), name)
    with pytest.raises(OtherOrderError, match="asks for something else"):
        orders.place(number(1), Order([], {"n": 2}, False))
    orders.end(number(1))
    with pytest.raises(UnknownOrderError):
        orders.find(number(1))
    assert not list((tmp_path / "jobs").iterdir())


def test_jobs_run_alone_and_in_the_order_in_which_they_were_ready(make: Made) -> None:
    running, seen = threading.Semaphore(1), []

    def answer(job: Any, *_: Any) -> dict[str, Any]:
        assert running.acquire(blocking=False)
        seen.append(job["n"])
        time.sleep(0.002)
        running.release()
        return {}

    orders = make(answer)
    for place in range(20):
        orders.place(number(place), Order([], {"n": place}, False))
    for place in range(20):
        until(orders, number(place), "done")
    assert seen == list(range(20))


def test_one_that_is_ended_while_it_runs_stops_and_leaves_nothing(make: Made, tmp_path: Path) -> None:
    began = threading.Event()

    def answer(job: Any, folder: Path, tell: Any, stop: threading.Event) -> dict[str, Any]:
        if job["n"] == 0:
            (folder / "half").write_bytes(b"half")
            began.set()
            assert stop.wait(20)
            raise StageError("stopped")
        return job

    orders = make(answer)
    orders.place(number(0), Order([], {"n": 0}, False))
    assert began.wait(20)
    orders.place(number(1), Order([], {"n": 1}, False))
    orders.end(number(0))
    orders.place(number(0), Order([], {"n": 2}, False))  # the same number again, at once
    assert until(orders, number(1), "done").events[-1]["answer"] == {"n": 1}
    assert until(orders, number(0), "done").events[-1]["answer"] == {"n": 2}
    assert not list((tmp_path / "jobs").iterdir())


@pytest.mark.parametrize(
    ("error", "words", "is_device"),
    [
        (StageError("it\nbreaks"), "it breaks", False),
        (ZeroDivisionError("x"), "ZeroDivisionError: x", False),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device", True),
        (OutputError("the disk is full"), "the disk is full", True),
    ],
)
def test_a_job_that_fails_is_told_with_whose_fault_it_is(
    make: Made, error: Exception, words: str, is_device: bool
) -> None:
    def answer(*_: Any) -> dict[str, Any]:
        raise error

    orders = make(answer)
    orders.place(number(1), Order([], {}, False))
    assert until(orders, number(1), "failed").events[-1] == {"event": "failed", "error": words, "device": is_device}


def test_what_is_no_json_is_no_answer(make: Made) -> None:
    orders = make(lambda job, *_: {"s": float(job["x"])})
    orders.place(number(1), Order([], {"x": "nan"}, False))
    assert until(orders, number(1), "failed")


def test_a_job_that_writes_over_what_it_was_given_does_not_reach_the_cache(make: Made, cache: StageCache) -> None:
    def answer(job: Any, folder: Path, *_: Any) -> dict[str, Any]:
        (folder / "output-0.npy").write_bytes(b"other")  # one with the file in the cache
        return {}

    orders, order = make(answer), Order([file("output-0.npy")], {}, False)
    send(orders, cache, number(1), order)
    assert "written over 'output-0.npy'" in until(orders, number(1), "failed").events[-1]["error"]
    orders.end(number(1))
    assert orders.place(number(2), Order(order.files, {}, False))[1] == {order.files[0].sha256: 0}


def test_a_file_that_is_damaged_on_the_disk_is_asked_for_again(make: Made, cache: StageCache, tmp_path: Path) -> None:
    order = Order([file("x.bin")], None, False)
    send(make(), cache, number(1), order)
    next((tmp_path / "files" / "files").iterdir()).write_bytes(b"y" * 1000)
    cache._checked.clear()  # as in a process that has just begun
    orders = make()
    orders.place(number(2), Order(order.files, {}, False))
    for _ in range(2000):
        try:
            orders.find(number(2))
        except UnknownOrderError:
            break
        time.sleep(0.005)
    assert orders.place(number(2), Order(order.files, {}, False))[1] == {order.files[0].sha256: 0}


def test_orders_that_nobody_asks_about_are_ended_and_an_upload_asks(
    make: Made, cache: StageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    class Clock:
        monotonic = staticmethod(lambda: now[0])

    monkeypatch.setattr(module, "time", Clock)
    orders = make(lambda job, folder, tell, stop: {"stopped": stop.wait(20)})
    orders.place(number(0), Order([], {"n": 0}, False))  # runs, and its client is killed
    orders.place(number(1), Order([], {"n": 1}, False))  # waits, and its client is killed
    uploading = Order([file("a.bin")], None, False)
    orders.place(number(2), uploading)
    for _ in range(7):  # an upload of over an hour, which asks for nothing but to write
        now[0] += module.LEASE_S - 1
        assert orders.file_of(uploading.files[0].sha256) == uploading.files[0]
    orders.place(number(3), Order([], None, False))
    for gone in (0, 1):
        with pytest.raises(UnknownOrderError):
            orders.find(number(gone))
    assert orders.find(number(2)) is uploading


def test_files_sent_ahead_make_way_for_a_job(make: Made, cache: StageCache) -> None:
    orders = make()
    for place in range(2):
        send(
            orders,
            cache,
            number(place),
            Order([file(f"{place}", bytes([place]) * 1000)], None, False),
            bytes([place]) * 1000,
        )
    with pytest.raises(OutputError, match="lacks"):
        orders.place(number(5), Order([file("ahead", b"a" * 1000)], None, False))
    with pytest.raises(UnknownOrderError):
        orders.find(number(5))
    assert orders.place(number(6), Order([file("job", b"j" * 1000)], {}, False))[1]
    with pytest.raises(OutputError, match="lacks"):
        orders.place(number(7), Order([file("large", b"j" * 2501)], {}, False))


def test_so_many_are_taken_and_a_job_goes_before_files_sent_ahead(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ORDERS", 3)
    orders = make(lambda job, folder, tell, stop: {"stopped": stop.wait(20)})
    orders.place(number(0), Order([], None, False))
    for place in (1, 2):
        orders.place(number(place), Order([], {}, False))
    with pytest.raises(FullError):
        orders.place(number(3), Order([], None, False))
    orders.place(number(4), Order([], {}, False))
    with pytest.raises(FullError, match="3 orders are open"):
        orders.place(number(5), Order([], {}, False))
    assert orders.ahead(orders.find(number(4))) == 2


def test_what_cannot_be_done_is_refused_before_anything_is_sent(make: Made) -> None:
    with pytest.raises(UsageError, match="bad"):
        make().place(number(1), Order([file("x")], {"kind": "bad"}, False))
