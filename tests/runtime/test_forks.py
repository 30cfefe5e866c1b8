"""A forked child may use a loader that it inherits, and is told the reason where it may not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import runtime_models

from splitload.runtime import forks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
WAIT_S = 60

FORK = """
import os, signal, sys, threading, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads: that is the point here
import numpy as np
import onnxruntime as ort
import runtime_models
from splitload.base.errors import StageError

bundle, when = sys.argv[2:]
gate, inside = threading.Event(), threading.Event()


def slow(open_session, graph, *, prepack=False, **options):
    if prepack == (when == "upgrading"):
        inside.set()
        assert gate.wait(60)
    return open_session(graph, prepack=prepack, **options)


def failing(open_session, graph, **options):
    raise OSError("no such luck")


def plain(open_session, graph, **options):
    return open_session(graph, **options)


opened = plain


def opens(open_session, graph, **options):
    return opened(open_session, graph, **options)


Loader = runtime_models.loader_with(open_session=opens)


def used(model):
    results = model.run(None, runtime_models.feeds())
    assert model.wait("upgraded", 30) and model.ready
    return results


def in_child(work):
    global opened
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(60)  # ends the child if it hangs
            opened = plain
            work()
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def same(got):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def many():
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(used(model))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 3
    for each in outcomes:
        same(each)


def refused(text):
    try:
        model.run(None, runtime_models.feeds())
    except StageError as error:
        assert text in str(error), error
    else:
        raise AssertionError("it ran")


options = ort.SessionOptions()
options.intra_op_num_threads = 2
with Loader(bundle, options) as first:
    expected = used(first)
if when in ("loading", "upgrading"):
    opened = slow
if when == "failed":
    opened = failing
model = Loader(bundle, options, threads=4)
if when == "upgrading":
    model.run(None, runtime_models.feeds())
if when in ("loading", "upgrading"):
    assert inside.wait(30)
if when == "upgraded":
    used(model)
if when == "closed":
    model.close()
if when == "failed":
    refused("no such luck")

if when == "closed":
    in_child(lambda: refused("was closed"))
elif when == "failed":
    in_child(lambda: refused("no such luck"))
else:
    in_child(lambda: same(used(model)))
    in_child(lambda: (same(used(model)), in_child(lambda: same(used(model)))))  # and its own child
    in_child(lambda: None)  # who does not use it pays nothing
    in_child(lambda: (model.close(), refused("was closed")))
    in_child(many)
gate.set()
if when not in ("closed", "failed"):
    if when != "upgraded":
        same(used(model))
    model.close()
print("done")
"""


@pytest.mark.parametrize("when", ["loading", "upgrading", "upgraded", "closed", "failed"])
def test_a_child_loads_what_it_inherits_anew(native_bundle: Path, when: str) -> None:
    words = [str(Path(runtime_models.__file__).parent), str(native_bundle), when]
    done = subprocess.run([sys.executable, "-c", FORK, *words], capture_output=True, text=True, timeout=WAIT_S * 2)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_server_that_forks_workers_after_loading_gets_answers(native_bundle: Path) -> None:
    code = """
import multiprocessing, sys, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
import runtime_models
from splitload import ParallelLoader

model = ParallelLoader(sys.argv[2])


def answer(seed):
    return float(model.run(["y"], runtime_models.feeds(seed=seed))[0].sum())


if __name__ == "__main__":
    expected = [answer(seed) for seed in range(4)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(answer, range(4)) == expected
    print("done")
"""
    words = [str(Path(runtime_models.__file__).parent), str(native_bundle)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


GATE = """
import os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore")
from splitload.runtime import forks

order, go, inside = [], threading.Event(), threading.Event()


def make():
    with forks.making_session():
        inside.set()
        go.wait(30)
        order.append("made")


thread = threading.Thread(target=make)
thread.start()
inside.wait(30)
threading.Timer(0.2, go.set).start()
child = os.fork()
if child == 0:
    signal.alarm(30)
    with forks.making_session():  # is not kept out by what the parent held
        os._exit(7 if order == ["made"] else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with forks.making_session():
    pass
"""


def test_a_fork_waits_until_sessions_are_made() -> None:
    done = subprocess.run([sys.executable, "-c", GATE], capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")


def test_a_fork_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor for the thread that forks, should an interrupt have left it behind."""
    monkeypatch.setattr(forks, "MAX_WAIT_S", 0.05)
    monkeypatch.setattr(forks, "_inside", {threading.get_ident(), -1})
    forks._before()
    forks._gate.release()
    monkeypatch.setattr(forks, "MAX_WAIT_S", 1e9)
    monkeypatch.setattr(forks, "_inside", {threading.get_ident()})
    forks._before()
    forks._gate.release()


def test_an_error_leaves_nothing_behind() -> None:
    with pytest.raises(OSError, match="no"), forks.making_session():
        raise OSError("no")
    assert threading.get_ident() not in forks._inside


def test_a_fork_waits_for_no_block_within_a_block() -> None:
    """The inner one would wait for who forks, and that for the outer one."""
    code = """
import os, threading, time
from splitload.runtime import forks
forks.MAX_WAIT_S = 60
inside = threading.Event()
def work():
    with forks.making_session():
        inside.set()
        time.sleep(0.5)  # the fork has begun to wait by then
        with forks.making_session():
            pass
threading.Thread(target=work).start()
inside.wait()
child = os.fork()
if not child:
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")
