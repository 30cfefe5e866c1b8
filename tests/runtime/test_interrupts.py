"""A Ctrl-C at each place where Python may deliver one leaves a loader that answers or is closed, and nothing hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import runtime_models

from splitload.bundle.read import read_manifest
from splitload.bundle.write import write_manifest

# Python runs a signal's handler where a function begins and after a call of a built-in one has ended. `prof` raises at
# the place that `places` counts down to.
EVERYWHERE = """
import contextlib, faulthandler, sys, threading, time
import numpy as np, onnxruntime
import splitload.runtime.opening
from splitload import ParallelLoader
from splitload.base.errors import StageError
from splitload.runtime.opening import LoadingParts
from splitload.runtime.pool import LoadingPool

bundle, feeds = sys.argv[1], {"x": np.ones((1, 16), np.float32), "z": np.ones(16, np.float32)}
places = 0

def prof(frame, event, argument):
    global places
    if event in ("call", "c_return") and frame.f_code is not main.__code__:
        places -= 1
        if places < 0:
            sys.setprofile(None)
            raise KeyboardInterrupt

def elsewhere(over):
    while model is None and not over.is_set():
        time.sleep(0.0001)
    with contextlib.suppress(StageError):
        model is None or model.run(None, feeds)

def main():
    global model
    sys.setprofile(prof)
    model = Loader(bundle, residency=sys.argv[2])
    model.run(None, feeds)
    model.wait("upgraded")
    model.close()
    sys.setprofile(None)

with ParallelLoader(bundle) as first:
    expected = first.run(None, feeds)
manifest = splitload.runtime.opening.read_manifest(first._folder)
splitload.runtime.opening.read_manifest = lambda *_: manifest  # has a thousand such places, and no threads
number, ended, answered = 0, 0, 0
while ended < 3:  # how many places there are depends on the other threads
    faulthandler.dump_traceback_later(60, exit=True)
    pool = LoadingPool(2, idle_s=0.05)
    Loader = type("Loader", (ParallelLoader,), {"_parts": LoadingParts(pool=pool)})
    model, places, over = None, number, threading.Event()
    if number % 2:
        other = threading.Thread(target=elsewhere, args=(over,))
        other.start()
    with contextlib.suppress(KeyboardInterrupt):
        main()
    ended += places >= 0
    over.set()
    if number % 2:
        other.join()
    if model is not None:
        try:
            for got, value in zip(model.run(None, feeds), expected):
                np.testing.assert_allclose(got, value, atol=1e-5)
            answered += 1
            model.wait("upgraded")
        except StageError as error:
            assert "closed" in str(error), error
        model.close()
        assert not model._loading._inside
    with Loader(bundle) as other:
        other.run(None, feeds)
    while not pool._threads <= set(sys._current_frames()):  # one that was just started has no frame yet
        time.sleep(0.0001)
    number += 1
print(number, answered)
"""


@pytest.fixture(scope="module")
def bundles(chain_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Bundles by their number of stages, all upgraded after the first answer."""
    folder = tmp_path_factory.mktemp("interrupts")
    made = {}
    for count in (1, 2):
        made[count] = runtime_models.bundle(chain_model, folder / f"{count}.splitload", count)
        manifest = read_manifest(made[count])
        [variant] = manifest.variants
        stages = tuple(stage._replace(upgrade=True) for stage in variant.stages)
        write_manifest(made[count], manifest._replace(variants=(variant._replace(stages=stages),)))
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("count", "residency"), [(1, "all"), (2, "all"), (2, "stage")])
def test_an_interrupt_anywhere(bundles: dict[int, Path], count: int, residency: str) -> None:
    command = [sys.executable, "-c", EVERYWHERE, bundles[count], residency]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    places, answered = map(int, done.stdout.split())
    assert places > 200
    assert 0 < answered < places


@pytest.mark.parametrize("closing", ["model.close()", ""])
def test_an_interrupt_while_the_upgrade_is_waited_for_does_not_abort(bundles: dict[int, Path], closing: str) -> None:
    code = f"""
import os, signal, sys, threading, time
import numpy as np, onnxruntime
from splitload import ParallelLoader
from splitload.runtime.opening import LoadingParts

signal.signal(signal.SIGALRM, signal.default_int_handler)  # stands for Ctrl-C
inside = threading.Event()

def slow(open_session, *arguments, prepack=False, **options):
    if prepack:
        inside.set()
        time.sleep(0.3)
    session = open_session(*arguments, prepack=prepack, **options)
    if prepack:
        os.write(1, b"upgraded")
    return session

class Loader(ParallelLoader):
    _parts = LoadingParts(open_session=slow)

model = Loader(sys.argv[1])
model.run(None, {{"x": np.ones((1, 16), np.float32), "z": np.ones(16, np.float32)}})
inside.wait()
signal.setitimer(signal.ITIMER_REAL, 0.1)
{closing}
"""
    done = subprocess.run([sys.executable, "-c", code, bundles[1]], check=False, capture_output=True, timeout=60)
    assert done.returncode in ((-signal.SIGINT, 130) if closing else (0,)), done.stderr
    assert done.stdout == b"upgraded"  # the process waited for the thread inside the runtime


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_closes_what_it_inherited(bundles: dict[int, Path]) -> None:
    code = """
import os, sys
import onnxruntime
from splitload import ParallelLoader

with ParallelLoader(sys.argv[1]) as model:
    model.wait("upgraded")
    child = os.fork()
if child == 0:
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, bundles[1]], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "7\n", done.stderr
