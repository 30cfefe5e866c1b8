"""A crowd that closes, or whose client or connection is gone: nothing is answered, used or left behind."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import runtime_models
from crowd_answers import check, inputs

from splitload.base.errors import ClusterError, UsageError
from splitload.crowd import Crowd, LocalCrowd

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


def test_a_closed_crowd_answers_nothing_more(local: LocalCrowd, chain_bundle: Path) -> None:
    crowd = Crowd(chain_bundle, local.client)
    futures = [crowd.submit(each) for each in inputs(40)]
    crowd.close()
    crowd.close()
    for future in futures:
        assert future.exception(60) is None or isinstance(future.exception(), ClusterError)
    with pytest.raises(ClusterError, match="closed"):
        crowd.submit(runtime_models.feeds())
    deadline_s = time.monotonic() + 30
    while resident := local.client.run(lambda dask_worker: dask_worker.plugins["splitload-stages"].residents.keys()):
        if not any(resident.values()):
            break
        assert time.monotonic() < deadline_s, resident
        time.sleep(0.05)


def test_a_closed_crowd_uses_no_stage_any_more(local: LocalCrowd, chain_bundle: Path) -> None:
    def slow(dask_worker: Any) -> None:
        residents = dask_worker.plugins["splitload-stages"].residents
        residents.run = lambda *given: time.sleep(0.5) or type(residents).run(residents, *given)

    def restore(dask_worker: Any) -> None:
        del dask_worker.plugins["splitload-stages"].residents.run

    def resident(dask_worker: Any) -> list[str]:
        return list(dask_worker.plugins["splitload-stages"].residents.keys())

    def left(dask_worker: Any) -> list[str]:
        cache = dask_worker.plugins["splitload-stages"].cache
        for key in cache.stages():
            cache.remove(key)
        return list(cache.stages())

    with Crowd(chain_bundle, local.client) as crowd:
        local.client.run(slow)
        for each in inputs(8):
            crowd.submit(each)
        deadline_s = time.monotonic() + 30
        while not any(local.client.run(resident).values()):
            assert time.monotonic() < deadline_s, "no task has begun"
            time.sleep(0.02)
    local.client.run(restore)
    while any((stages := local.client.run(left)).values()):
        assert time.monotonic() < deadline_s, f"still in use: {stages}"
        time.sleep(0.05)


def test_a_crowd_that_closes_leaves_others_their_stages(local: LocalCrowd, chain_bundle: Path) -> None:
    def resident() -> list[list[str]]:
        told = local.client.run(lambda dask_worker: dask_worker.plugins["splitload-stages"].residents.keys())
        return [keys for keys in told.values() if keys]

    with Crowd(chain_bundle, local.client) as crowd:
        with Crowd(chain_bundle, local.client) as other:
            list(other.map(inputs(2)))
            list(crowd.map(inputs(2)))
        assert resident()
        check(chain_bundle, inputs(2), list(crowd.map(inputs(2))))
    deadline_s = time.monotonic() + 30
    while resident():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_a_client_that_was_killed_keeps_nothing_on_workers(chain_bundle: Path) -> None:
    """Its stages fill the cache until then, and others wait."""

    def hurry(dask_worker: Any) -> None:
        import splitload.crowd.worker

        splitload.crowd.worker._SILENT_S = 2.0

    def kept(dask_worker: Any) -> set[str]:
        plugin = dask_worker.plugins["splitload-stages"]
        users = [user for uses in plugin.cache._uses.values() for user in uses]
        users += [user for users in plugin.residents._users.values() for user in users]
        return {*plugin.gone_s, *users, *(name for name, _ in plugin.inputs)} - {""}

    async def use(crowd: Crowd) -> None:
        driver = crowd._driver
        (member,) = driver.members.active()
        for link in driver.chains.common.links[2:]:
            await driver.supply.bring(member, link.order)
        await driver._client.rpc(member.address).splitload_put(crowd=driver.members.crowd, attempt=99, parcel=b"")
        await driver.members.end()  # nobody asks workers any more, as if it was killed

    with LocalCrowd(1, cache_bytes=9000) as made:
        made.client.run(hurry)
        live, dead = (Crowd(chain_bundle, made.client) for _ in range(2))
        list(dead.map(inputs(1)))
        dead._in_loop(use(dead)).result(60)
        check(chain_bundle, inputs(1), list(live.map(inputs(1))))
        deadline_s = time.monotonic() + 60
        while list(made.client.run(kept).values()) != [{live._driver.members.crowd}]:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        dead.close()
        live.close()


def test_a_crowd_whose_client_was_closed_ends(chain_bundle: Path) -> None:
    with LocalCrowd(1) as made:
        crowd = Crowd(chain_bundle, made.client)
        stream = crowd.map(inputs(300))
        next(stream)
    with pytest.raises(ClusterError, match="closed"):
        list(stream)
    with pytest.raises(ClusterError, match="closed"):
        crowd.submit(runtime_models.feeds())
    with pytest.raises(ClusterError, match="client of this crowd is closed"):
        Crowd(chain_bundle, made.client)


def test_a_connection_to_the_scheduler_that_breaks_ends_the_crowd(chain_bundle: Path) -> None:
    """Dask connects anew, and has forgotten all tasks and who wants to be told of them."""
    with LocalCrowd(1) as made, Crowd(chain_bundle, made.client) as crowd:
        list(crowd.map(inputs(1)))
        made.client.loop.add_callback(made.client.scheduler_comm.comm.abort)
        with pytest.raises(ClusterError, match="connection to the scheduler of the crowd broke"):
            for _ in crowd.map(inputs(1) * 10_000):
                pass


def test_a_local_crowd_leaves_nothing_behind(chain_bundle: Path) -> None:
    with pytest.raises(UsageError, match="needs a worker"):
        LocalCrowd(0)
    with LocalCrowd(2) as made:
        processes, folder = list(made.processes.values()), made._folder
        processes[0].send_signal(signal.SIGSTOP)
    assert all(process.poll() is not None for process in processes)
    assert not folder.exists()
