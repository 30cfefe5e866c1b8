"""What threads wait for: a Latch, and at exit; and what lists objects without keeping them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import splitload.runtime.pool
from splitload.runtime.pool import Latch, Living

WAIT_S = 60


@pytest.fixture(autouse=True)
def nobody_looks_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is not woken waits for longer than any test."""
    monkeypatch.setattr(splitload.runtime.pool, "SIGNAL_S", 10 * WAIT_S)


def test_a_latch_wakes_everyone() -> None:
    latch = Latch()
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(latch.wait, timeout) for timeout in [None, WAIT_S] * 4]
        time.sleep(0.05)
        assert not any(each.done() for each in waiting)
        latch.set()
        latch.set()
        assert all(each.result(WAIT_S) for each in waiting)
    assert latch.wait()
    assert latch.wait(0)
    assert latch.is_set()


@pytest.mark.parametrize("timeout", [0, -1, -math.inf, math.nan, 0.01])
def test_a_latch_that_nobody_sets(timeout: float) -> None:
    latch = Latch()
    assert latch.wait(timeout) is False
    assert latch.is_set() is False


def test_what_is_listed_is_not_kept_alive() -> None:
    class One:
        pass

    living, kept, gone = Living(), One(), One()
    living.add(kept)
    living.add(gone)
    living.add(kept)
    assert set(living) == {kept, gone}
    del gone
    assert list(living) == [kept]


AWAITED = """
import atexit, os, signal, threading, time
order = []
@atexit.register  # called after the pool's own
def last():
    print(order)
from splitload.runtime.pool import await_at_exit, dropping, started
class Held:
    def __del__(self):
        order.append("freed")
    def work(self):
        exits.wait(60)
        for _ in range(3):
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        order.append("worked")
exits = threading.Event()
work, ended = dropping(Held().work)
assert started(threading.Thread(target=work, daemon=True))
await_at_exit(ended)
atexit.register(exits.set)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are sent otherwise here")
def test_interrupts_do_not_end_the_wait_at_exit() -> None:
    """`Thread.join` takes a thread for ended when one comes."""
    done = subprocess.run([sys.executable, "-c", AWAITED], capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, "['worked', 'freed']\n", "")
