"""What a worker is expected to take, and whether a stage has its share of the crowd."""

from __future__ import annotations

import pytest

from splitload.crowd.balance import Balance
from splitload.crowd.entities import Measured, Stage, Worker
from splitload.crowd.seconds import Seconds
from splitload.crowd.station import Station

STAGES = [Stage("a", 100, 1, run_s=1.0, load_s=0.5, output_bytes=10), Stage("b", 200, 1, run_s=3.0, load_s=1.0)]


def station(name: str, resident: int, speed: float = 1.0) -> Station:
    worker = Worker(name, speed=speed)
    return Station(worker, Seconds(STAGES, worker), resident={resident: None})


def test_a_guess_follows_the_speed_until_a_stage_is_measured() -> None:
    seconds = Seconds(STAGES, Worker("pi", link_bytes_per_s=100.0))
    assert (seconds.run_s(0), seconds.load_s(1), seconds.fetch_s(1), seconds.input_s(0)) == (1.0, 1.0, 2.0, 0.1)
    seconds.learn(0, Measured(run_s=4.0), ran=True)
    assert (seconds.run_s(0), seconds.run_s(1), seconds.load_s(1)) == (4.0, 12.0, 4.0), "it is four times slower"
    seconds.learn(1, Measured(run_s=6.0, load_s=0.3, fetch_s=8.0), ran=True)
    assert (seconds.run_s(1), seconds.load_s(1)) == (6.0, 0.3)
    assert seconds.fetch_s(0) == pytest.approx(4.0), "the link is slower than was said"
    for _ in range(40):
        seconds.learn(0, Measured(run_s=2.0), ran=True)
    assert seconds.run_s(0) == pytest.approx(2.0, rel=1e-3), "a device that became faster"


def test_loads_have_a_ratio_of_their_own() -> None:
    seconds = Seconds(STAGES, Worker("pi"))
    seconds.learn(0, Measured(run_s=4.0, load_s=0.05), ran=True)
    assert seconds.run_s(1) == 12.0, "its processor is four times slower than guessed"
    assert seconds.load_s(1) == pytest.approx(0.1), "and its disk ten times faster"


def test_what_a_worker_remembers_is_no_guess() -> None:
    seconds = Seconds(STAGES, Worker("pi", measured={1: Measured(run_s=6.0, load_s=0.3)}))
    assert (seconds.is_measured(0), seconds.is_measured(1)) == (False, True)
    assert (seconds.run_s(1), seconds.load_s(1), seconds.run_s(0)) == (6.0, 0.3, 2.0)


def test_a_stage_has_enough_when_it_keeps_up_with_the_crowd() -> None:
    balance = Balance(2)
    first, second = station("first", 0), station("second", 1)
    balance.update(first)
    balance.update(second)
    assert balance.has_enough(0), "one does an item a second of stage a, and both together half a one of the whole"
    assert not balance.has_enough(1), "the other does a third"
    balance.update(station("third", 1))
    balance.update(station("fourth", 1))
    assert balance.has_enough(0)
    assert balance.has_enough(1)
    assert not balance.has_enough(1, without=station("fourth", 1))
    second.hangs = True
    balance.update(second)
    assert not balance.has_enough(1)
    for name in ("first", "second", "third", "fourth"):
        balance.remove(name)
    assert balance.has_enough(0), "an empty crowd wants nothing"
