"""The execution scheme of a bundle reaches the runtime, and a background upgrade stays in the background."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from runtime_models import feeds, loader_with

from splitload.base import machine
from splitload.base.machine import inference_threads
from splitload.bundle.manifest import MANIFEST
from splitload.envs.costs import cost_matrices
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention
from splitload.runtime.session import open_session

pytestmark = pytest.mark.usefixtures("engine")

WAIT_S = 60
needs_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="a thread has a niceness of its own on Linux only"
)


def with_scheme(bundle: Path, target: Path, **scheme: Any) -> Path:
    """A copy of the bundle whose first variant loads all its stages in one way."""
    shutil.copytree(bundle, target, copy_function=shutil.copyfile)
    manifest = json.loads((target / MANIFEST).read_text())
    for stage in manifest["variants"][0]["stages"]:
        stage.update(scheme)
    (target / MANIFEST).write_text(json.dumps(manifest))
    return target


@pytest.mark.parametrize(
    "scheme", [{"mapped": False}, {"prefetch": True}, {"prepack": True}, {"upgrade": False}], ids=str
)
def test_the_loader_does_what_the_manifest_says(native_bundle: Path, tmp_path: Path, scheme: dict[str, bool]) -> None:
    opened: list[dict[str, bool]] = []
    read: list[str] = []

    def record(open_session: Any, graph: Path, **options: bool) -> Any:
        opened.append(options)
        return open_session(graph, **options)

    loader = loader_with(open_session=record, read_ahead=lambda path: read.append(Path(path).name))
    with loader(native_bundle, upgrade=False) as model:
        expected = model.run(None, feeds())
    opened.clear()
    bundle = with_scheme(native_bundle, tmp_path / "m.splitload", **scheme)
    with loader(bundle) as model:
        got = model.run(None, feeds())
        assert model.wait("upgraded", WAIT_S)
        stages = len(model.variant.stages)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(got, expected, strict=True))
    first, later = opened[:stages], opened[stages:]
    assert {each["mapped"] for each in opened} == {scheme.get("mapped", True)}
    assert {each["prepack"] for each in first} == {scheme.get("prepack", False)}
    assert {each["background"] for each in first} == {False}
    assert len(later) == (stages if scheme.get("upgrade", True) else 0)
    assert all(each["prepack"] and each["background"] for each in later)
    for thread in threading.enumerate():
        if thread.name.startswith("Thread-"):
            thread.join(WAIT_S)
    assert len(read) == (stages if scheme.get("prefetch") else 0)


@needs_linux
def test_onnxruntime_asks_what_to_disable_between_starting_threads_and_optimising(
    chain_model: Path, tmp_path: Path
) -> None:
    """This order is onnxruntime's contract that `session._nothing_at_low_priority` leans on."""
    saved = tmp_path / "optimised.onnx"
    options = ort.SessionOptions()
    options.intra_op_num_threads = 3
    options.optimized_model_filepath = str(saved)
    before, asked = tasks(), []

    def disabled() -> Iterator[str]:
        asked.append((threading.get_native_id(), len(tasks() - before), saved.exists()))
        yield from ()

    session = ort.InferenceSession(
        str(chain_model), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled()
    )
    assert asked == [(threading.get_native_id(), 2, False)], "the caller is the third thread"
    assert saved.exists()
    assert len(tasks() - before) == 2, "no thread is started later, which would be of low priority"
    del session


@needs_linux
def test_a_background_session_lowers_its_maker_and_not_the_threads_that_will_run_it(native_bundle: Path) -> None:
    graph = next(native_bundle.glob("native-00*.ort"))
    found: dict[int, int] = {}
    before = tasks()

    def make() -> None:
        session = open_session(graph, prepack=True, background=True)
        for task in tasks() - before:
            found[task] = os.getpriority(os.PRIO_PROCESS, task)
        found[-1] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        del session

    usual = os.getpriority(os.PRIO_PROCESS, 0)
    maker = threading.Thread(target=make)
    maker.start()
    maker.join(WAIT_S)
    assert found.pop(-1) == 19
    assert {nice for task, nice in found.items() if task != maker.native_id} <= {usual}
    assert os.getpriority(os.PRIO_PROCESS, 0) == usual


def tasks() -> set[int]:
    """The threads of this process, as the system numbers them."""
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


def growing_profile() -> Profile:
    blocks = tuple(BlockProfile(f"b{i}", 100, Cost(0.5 + 0.25 * i, 0.5, 0.25)) for i in range(5))
    return Profile(
        "m", "a" * 64, "native", "dev", "measured", blocks, 0.0, Contention(2), {(0, 5): Cost(12.0, 2.5, 1.25)}, {}
    )


def test_what_the_whole_takes_beyond_its_blocks_is_laid_on_pairs() -> None:
    profile = growing_profile()
    total = sum(block.cost.load_s for block in profile.blocks)
    assert profile.load_model.growth_per_s > 0
    assert profile.cost(0, 5).load_s == 12.0
    halves = profile.cost(0, 2).load_s + profile.cost(2, 5).load_s
    assert total < halves < 12.0
    for number, block in enumerate(profile.blocks):
        assert profile.cost(number, number + 1).load_s == pytest.approx(block.cost.load_s)
    matrices = cost_matrices(profile)
    for start in range(5):
        for end in range(start + 1, 6):
            assert matrices.load_s[start, end] == pytest.approx(profile.cost(start, end).load_s)


def test_a_single_stage_is_loaded_by_whoever_asks_for_it(chain_model: Path, tmp_path: Path) -> None:
    import runtime_models

    bundle = runtime_models.bundle(chain_model, tmp_path / "one.splitload", num_stages=1)
    threads: list[int] = []

    def record(open_session: Any, graph: Path, **options: bool) -> Any:
        threads.append(threading.get_ident())
        return open_session(graph, **options)

    with loader_with(open_session=record, hand_over_s=WAIT_S)(bundle, upgrade=False) as model:
        assert len(model.run(None, feeds())) == 2
    assert threads == [threading.get_ident()]
    with loader_with(open_session=record, hand_over_s=0)(bundle, upgrade=False) as model:
        assert model.wait("loaded", WAIT_S)
    assert threads[1] != threading.get_ident()


def test_an_interrupted_load_is_left_to_another_thread(chain_model: Path, tmp_path: Path) -> None:
    import runtime_models

    bundle = runtime_models.bundle(chain_model, tmp_path / "one.splitload", num_stages=1)
    calls: list[Path] = []

    def interrupted(open_session: Any, graph: Path, **options: bool) -> Any:
        calls.append(graph)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return open_session(graph, **options)

    with loader_with(open_session=interrupted, hand_over_s=WAIT_S)(bundle, upgrade=False) as model:
        with pytest.raises(KeyboardInterrupt):
            model.run(None, feeds())
        assert model.wait("loaded", WAIT_S)
        assert len(model.run(None, feeds())) == 2


@pytest.mark.skipif(not inference_threads(), reason="the system does not tell how many cores there are")
def test_inference_threads_may_run_anywhere(native_bundle: Path) -> None:
    before = tasks()
    session = open_session(next(native_bundle.glob("native-00*.ort")))
    assert session.get_session_options().intra_op_num_threads == inference_threads()
    made = tasks() - before
    assert len(made) == inference_threads() - 1
    assert all(os.sched_getaffinity(task) == os.sched_getaffinity(0) for task in made)


@pytest.mark.parametrize(
    ("siblings", "allowed", "cores"),
    [
        (["0", "1", "2", "3"], {0, 1, 2, 3}, 4),
        (["0-1", "0-1", "2-3", "2-3"], {0, 1, 2, 3}, 2),
        (["0,2", "1,3", "0,2", "1,3"], {0, 1}, 2),  # one of each
        (["0,2", "1,3", "0,2", "1,3"], {1, 3}, 1),
        (["0-1", "0-1", "2", "3"], {0, 1, 2, 3}, 3),  # large and small cores
        (["0", "1", "", "3"], {0, 1, 2, 3}, 0),
        (["0", "1"], {0, 1, 2}, 0),
    ],
)
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not tell")
def test_cores_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, siblings: list[str], allowed: set[int], cores: int
) -> None:
    for processor, text in enumerate(siblings):
        file = tmp_path / f"cpu{processor}" / "topology" / "thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(f"{text}\n")
    monkeypatch.setattr(machine, "_PROCESSORS", tmp_path)
    monkeypatch.setattr(machine, "_core", machine._core.__wrapped__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    assert machine.inference_threads() == cores
