"""A crowd of real worker processes: right answers in order, whatever happens to inputs, stages and workers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import onnx
import pytest
import runtime_models
from crowd_answers import check, inputs

from splitload.base.errors import BundleError, ClusterError, StageError, UsageError
from splitload.crowd import Crowd, LocalCrowd, Mechanisms

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
SHAPES = {"x": np.ones(4, np.float32), "shape": np.array([2, 2])}


@pytest.fixture
def own() -> Iterator[LocalCrowd]:
    """A crowd of three whose workers a test may end."""
    with LocalCrowd(3) as made:
        yield made


@pytest.fixture(scope="module")
def shapeless_bundle(runtime_folder: Path) -> Path:
    """A model whose second stage fails where `shape` does not fit `x`."""
    path = runtime_folder / "shapeless.onnx"
    onnx.save(runtime_models.shapeless(), path)
    return runtime_models.bundle(path, path.with_suffix(".splitload"))


def test_answers_are_those_of_the_whole_model_in_order(local: LocalCrowd, native_bundle: Path) -> None:
    given = inputs(12)
    with Crowd(native_bundle, local.client) as crowd:
        check(native_bundle, given, list(crowd.map(iter(given))))
        places, outputs = zip(*crowd.as_completed(given), strict=True)
        check(native_bundle, [given[place] for place in places], outputs)
        futures = [crowd.submit(each) for each in given]
        check(native_bundle, given, [future.result(60) for future in futures])
        report = crowd.report()
    assert sum(device.tasks for device in report.devices) == 3 * 12 * 4
    assert {device.most_resident for device in report.devices} == {1}
    assert {device.variant for device in report.devices} == {"native"}
    for device in report.devices:
        assert {task.kind for task in device.timeline.tasks} == {"load", "infer"}
        assert device.peak_bytes is None or device.peak_bytes > 0
    stages_bytes = sum(file.stat().st_size for file in native_bundle.iterdir() if file.name.startswith("native"))
    assert report.stages_from_client_bytes > 0
    assert report.stages_from_client_bytes + report.stages_between_bytes <= 2 * stages_bytes
    assert report.to_json()["devices"][0]["timeline"]["source"] == "measured"
    with Crowd(native_bundle, local.client) as crowd:
        remembered = local.client.run(lambda dask_worker: dask_worker.plugins["splitload-stages"].seconds)
        assert len({key for each in remembered.values() for key in each}) == 4, "the next crowd knows what stages take"
        check(native_bundle, given[:2], list(crowd.map(given[:2])))


@pytest.mark.parametrize(
    "mechanisms",
    [
        Mechanisms(streaming=False),
        Mechanisms(deferred_loading=False, one_resident=False, compression="always"),
        Mechanisms(affinity="tiers", stage_cache=False),
        Mechanisms(affinity="off", recovery=False, compression="off"),
    ],
    ids=["barrier", "all loaded", "tiers without cache", "off"],
)
def test_each_mechanism_can_be_switched(local: LocalCrowd, chain_bundle: Path, mechanisms: Mechanisms) -> None:
    given = inputs(6)
    with Crowd(chain_bundle, local.client, mechanisms=mechanisms) as crowd:
        check(chain_bundle, given, list(crowd.map(given)))


def test_an_input_that_fails_has_its_error_in_its_place(local: LocalCrowd, shapeless_bundle: Path) -> None:
    bad = {**SHAPES, "shape": np.array([3, 3])}
    given = [SHAPES, bad, {"x": SHAPES["x"]}, {**SHAPES, "x": np.ones(5, np.float32)}, SHAPES]
    with Crowd(shapeless_bundle, local.client) as crowd:
        outputs: list[Any] = list(crowd.map(given))
        with pytest.raises(StageError, match=r"stage '.*' does not run"):
            crowd.submit(bad).result(60)
    check(shapeless_bundle, [SHAPES, SHAPES], [outputs[0], outputs[4]])
    assert isinstance(outputs[1], StageError) and "does not run" in str(outputs[1])
    assert [str(each) for each in outputs[2:4]] == [
        "the inputs ['shape'] are missing; the model has ['shape', 'x']",
        "input 'x' has the shape [5], the model takes [4]",
    ]


def test_what_is_no_input_has_an_error_in_its_place(local: LocalCrowd, chain_bundle: Path) -> None:
    given: list[Any] = [inputs(1)[0], None, inputs(1)[0]["x"], inputs(1)[0]]
    with Crowd(chain_bundle, local.client) as crowd:
        outputs: list[Any] = list(crowd.map(given))
    check(chain_bundle, [given[0], given[3]], [outputs[0], outputs[3]])
    assert all(isinstance(each, UsageError) and "maps names to arrays" in str(each) for each in outputs[1:3])


def test_a_crowd_that_does_not_begin_asks_workers_nothing_more(local: LocalCrowd, chain_bundle: Path) -> None:
    def asked() -> list[Any]:
        tasks = asyncio.all_tasks(local.client.loop.asyncio_loop)
        return [task for task in tasks if task.get_coro().__qualname__ == "Members._watch_worker"]  # type: ignore[union-attr]

    with pytest.raises(UsageError, match="at least one item"):
        Crowd(chain_bundle, local.client, max_in_flight=0)
    assert not asked()


def test_no_more_inputs_are_read_than_may_be_on_their_way(local: LocalCrowd, chain_bundle: Path) -> None:
    read, most = 0, 0

    def source() -> Iterator[dict[str, Any]]:
        nonlocal read
        for each in inputs(20):
            read += 1
            yield each

    with Crowd(chain_bundle, local.client, max_in_flight=3) as crowd:
        for taken, _ in enumerate(crowd.map(source())):
            most = max(most, read - taken)
    assert (read, most) == (20, 3)


def test_a_stage_that_was_damaged_on_disk_is_sent_again(local: LocalCrowd, chain_bundle: Path) -> None:
    given = inputs(4)
    with Crowd(chain_bundle, local.client) as crowd:
        check(chain_bundle, given, list(crowd.map(given)))

    def damage(dask_worker: Any) -> int:
        plugin = dask_worker.plugins["splitload-stages"]
        plugin.cache._checked.clear()  # as a new process would
        files = [file for file in plugin.cache._files.iterdir() if file.stat().st_size > 1000]
        for file in files:
            file.write_bytes(file.read_bytes()[:-1] + b"x")
        return len(files)

    assert sum(local.client.run(damage).values()) > 0
    with Crowd(chain_bundle, local.client) as crowd:
        check(chain_bundle, given, list(crowd.map(given)))


def test_nothing_is_lost_when_a_worker_is_killed_and_another_hangs(own: LocalCrowd, chain_bundle: Path) -> None:
    given, outputs = inputs(60), []
    with Crowd(chain_bundle, own.client) as crowd:
        for place, output in enumerate(crowd.map(given)):
            outputs.append(output)
            if place == 10:
                own.processes["local-1"].kill()
                own.add_worker("late")
            if place == 25:
                own.processes["local-2"].send_signal(signal.SIGSTOP)
        check(chain_bundle, given, outputs)
        report = crowd.report()
    tasks = {device.name: device.tasks for device in report.devices}
    assert sum(tasks.values()) >= 60 * 4
    assert report.notes["local-1"] == "it has ended"
    assert report.notes["local-2"].startswith("it did not answer")
    assert [device.is_present for device in report.devices if device.name == "local-1"] == [False]


def test_without_recovery_what_a_lost_worker_held_fails_alone(own: LocalCrowd, chain_bundle: Path) -> None:
    def arm(dask_worker: Any) -> None:
        if dask_worker.name == "local-1":
            dask_worker.plugins["splitload-stages"].residents.run = lambda *given: os._exit(1)

    given = inputs(12)
    with Crowd(chain_bundle, own.client, mechanisms=Mechanisms(recovery=False)) as crowd:
        own.client.run(arm)
        outputs = dict(crowd.as_completed(given))
    assert sorted(outputs) == list(range(12))
    lost = {place: each for place, each in outputs.items() if isinstance(each, Exception)}
    assert 0 < len(lost) < 12
    assert all(isinstance(each, StageError) and "was lost" in str(each) for each in lost.values())
    kept = sorted(outputs.keys() - lost.keys())
    check(chain_bundle, [given[place] for place in kept], [outputs[place] for place in kept])


def test_a_slower_worker_gets_less_work(local: LocalCrowd, chain_bundle: Path) -> None:
    def slow(dask_worker: Any, seconds: float) -> str:
        residents = dask_worker.plugins["splitload-stages"].residents
        residents.run = lambda *given: time.sleep(seconds) or type(residents).run(residents, *given)
        return str(dask_worker.name)

    def restore(dask_worker: Any) -> None:
        del dask_worker.plugins["splitload-stages"].residents.run

    with Crowd(chain_bundle, local.client) as crowd:
        names = local.client.run(slow, seconds=0.02)
        (slowest,) = [address for address, name in names.items() if name == "local-1"]
        local.client.run(slow, seconds=0.1, workers=[slowest])
        given = inputs(25)
        check(chain_bundle, given, list(crowd.map(given)))
        local.client.run(restore)
        tasks = {device.name: device.tasks for device in crowd.report().devices}
    assert tasks["local-1"] < tasks["local-2"] / 2


def test_an_input_that_ends_every_worker_is_given_up(own: LocalCrowd, shapeless_bundle: Path) -> None:
    def arm(dask_worker: Any) -> None:
        residents = dask_worker.plugins["splitload-stages"].residents
        run = residents.run

        def deadly(order: Any, tensors: Any) -> Any:
            if len(tensors) and b"\x07\x00\x00\x00\x00\x00\x00\x00" in bytes(tensors.get("shape", b"")):
                os._exit(1)
            return run(order, tensors)

        residents.run = deadly

    with Crowd(shapeless_bundle, own.client) as crowd:
        own.client.run(arm)
        deadly = crowd.submit({**SHAPES, "shape": np.array([7, 7])})
        with pytest.raises(StageError, match="3 workers ended while they ran stage"):
            deadly.result(60)
        own.add_worker("late")  # after it: an unarmed worker would answer with an ordinary error
        check(shapeless_bundle, [SHAPES], [crowd.submit(SHAPES).result(60)])


def test_a_crowd_without_room_or_workers_says_so(local: LocalCrowd, chain_bundle: Path, own_bundle: Path) -> None:
    with (
        Crowd(chain_bundle, local.client, ceiling_bytes=10) as crowd,
        pytest.raises(ClusterError, match=r"no worker can hold stage '1 .* may use most, 'local-\d', lacks"),
    ):
        crowd.submit(runtime_models.feeds()).result(60)
    weights = max(own_bundle.iterdir(), key=lambda file: file.stat().st_size)
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="SHA-256 differs"):
        Crowd(own_bundle, local.client)


def test_a_crowd_needs_a_client(native_bundle: Path) -> None:
    with pytest.raises(UsageError, match="not asynchronous"):
        Crowd(native_bundle, None)


def test_a_worker_that_cannot_keep_stages_is_told_of_and_the_others_go_on(chain_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "crowd").touch()  # where the folder of its stages would be
    with LocalCrowd(1) as made:
        made.add_worker("full", {"SPLITLOAD_CACHE": str(tmp_path)})
        made._wait(2)
        for _ in range(2):
            with Crowd(chain_bundle, made.client) as crowd:
                check(chain_bundle, inputs(2), list(crowd.map(inputs(2))))
                (note,) = crowd.report().notes.values()
            assert note.startswith("it takes no part: cannot keep stages in")


def test_many_threads_share_a_crowd(local: LocalCrowd, chain_bundle: Path) -> None:
    results: list[list[Any]] = [[] for _ in range(3)]
    with Crowd(chain_bundle, local.client) as crowd:

        def use(number: int) -> None:
            results[number] = list(crowd.map(inputs(5)))

        threads = [threading.Thread(target=use, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for outputs in results:
        check(chain_bundle, inputs(5), outputs)
