"""Jobs over processes and over a cluster: their order, their errors, interrupts, and clusters that will not do."""

from __future__ import annotations

import contextlib
import operator
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from splitload.base.errors import ClusterError, MissingPackageError, StageError, UsageError
from splitload.planner import parallel
from splitload.planner.parallel import check_cluster, run_all

WAIT_S = 60


# Prints its address and lives until its stdin is closed. In a process of its own its warnings are not ours.
CLUSTER = """
import sys
import distributed
workers = int(sys.argv[1])
with distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster:
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def local_cluster(workers: int) -> Iterator[str]:
    pytest.importorskip("distributed")
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(workers)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(WAIT_S)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster with two workers, each a process."""
    with local_cluster(2) as address:
        yield address


@pytest.fixture(params=["here", "processes", "cluster"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each way to run jobs, as keyword arguments of `run_all`."""
    if request.param == "cluster":
        return {"cluster": request.getfixturevalue("cluster")}
    return {"workers": 1 if request.param == "here" else 2}


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_results_come_in_the_order_of_the_jobs(where: dict[str, Any]) -> None:
    told: list[int] = []
    jobs = [(number, 7) for number in range(20)]
    assert run_all(divmod, jobs, on_done=told.append, **where) == [divmod(*job) for job in jobs] == told  # type: ignore[comparison-overlap]
    assert run_all(divmod, [], **where) == []


def test_a_failing_job_is_raised_as_it_was(where: dict[str, Any]) -> None:
    told: list[float] = []
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        run_all(operator.truediv, [(1, 2), (1, 0), (1, 4)], on_done=told.append, **where)
    assert told in ([], [0.5])


@pytest.mark.parametrize("where", ["processes", "cluster"], indirect=True)
def test_a_failing_job_is_not_kept_back_by_one_before_it(where: dict[str, Any]) -> None:
    told: list[None] = []
    with pytest.raises(ValueError, match="non-negative"):
        run_all(time.sleep, [(2,), (-1,)], on_done=told.append, **where)
    assert told == []


def test_one_worker_is_this_process() -> None:
    assert run_all(os.getpid, [(), ()], workers=1) == [os.getpid()] * 2
    assert os.getpid() not in run_all(os.getpid, [(), ()], workers=2)


def test_one_job_needs_no_process_of_its_own() -> None:
    assert run_all(os.getpid, [()], workers=8) == [os.getpid()]


def test_a_cluster_runs_jobs_itself(cluster: str) -> None:
    assert os.getpid() not in run_all(os.getpid, [()] * 4, cluster=cluster)


def test_an_interrupt_ends_the_processes() -> None:
    processes = set(run_all(os.getpid, [()] * 8, workers=2))

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(time.sleep, [(0,), *[(WAIT_S,)] * 4], workers=2, on_done=interrupt)
    until_s = time.monotonic() + WAIT_S / 2
    while not all(map(gone, processes)) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert all(map(gone, processes))


def interrupted_itself() -> int:
    """Send this process what a terminal sends to all at a Ctrl-C; return that it goes on."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)
    return 7


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_processes_leave_an_interrupt_to_who_has_started_them() -> None:
    assert run_all(interrupted_itself, [()] * 4, workers=2) == [7] * 4
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_giving_up_a_job_that_waits_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """joblib's thread trips over a job that no process was given yet; with one place for those, one always waits."""
    from joblib.externals.loky import reusable_executor

    room = 1 - 2 * max(2, reusable_executor.cpu_count())
    monkeypatch.setattr(reusable_executor, "EXTRA_QUEUED_CALLS", room)
    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", said.append)

    def interrupt(_: object) -> None:
        time.sleep(0.2)  # the other process has its job, the place is free
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(time.sleep, [(0,), *[(WAIT_S,)] * 9], workers=2, on_done=interrupt)
    assert said == []
    assert threading.excepthook == said.append


def test_a_process_that_dies_is_said_to_have() -> None:
    with pytest.raises(StageError, match="ended from outside"):
        run_all(os._exit, [(3,), (3,)], workers=2)


def test_an_interrupt_withdraws_from_a_cluster_what_has_not_begun(cluster: str, tmp_path: Path) -> None:
    made = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"
    paths = [tmp_path / str(number) for number in range(60)]

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs = [([sys.executable, "-c", made, str(path)],) for path in paths]
        run_all(subprocess.check_call, jobs, cluster=cluster, on_done=interrupt)
    run_all(os.getpid, [()] * 4, cluster=cluster)  # behind all that is there still
    assert len(list(tmp_path.iterdir())) < len(paths) / 2


def test_a_cluster_whose_workers_die_is_not_waited_for(cluster: str) -> None:
    with pytest.raises(ClusterError, match="gave up"):
        run_all(os._exit, [(3,)], cluster=cluster)


@pytest.mark.parametrize(
    "address",
    ["", "host:8786", "tcp://", "tcp://host", "tcp://host:port", "http://host:1", "tcp://host:1/x", "tcp://[:1"],
)
def test_a_malformed_address_is_a_usage_error(address: str) -> None:
    with pytest.raises(UsageError, match="tcp://HOST:PORT"):
        run_all(divmod, [(1, 2)], cluster=address)


def test_processes_and_a_cluster_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="not both"):
        run_all(divmod, [(1, 2)], workers=2, cluster="tcp://localhost:8786")


def test_without_the_package_the_cure_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "distributed"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingPackageError, match=r"pip install '\.\[cluster\]' \(in a checkout of splitload\)"):
        run_all(divmod, [(1, 2)], cluster="tcp://localhost:8786")


@pytest.mark.parametrize("listens", [False, True])
def test_a_cluster_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], listens: bool
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(parallel, "CONNECT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        with pytest.raises(ClusterError, match="no Dask scheduler answered at tcp://127"):
            check_cluster(f"tcp://127.0.0.1:{silent.getsockname()[1]}")
    assert capfd.readouterr() == ("", "")


def test_a_cluster_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "WORKERS_S", 0.1)
    with local_cluster(0) as address, pytest.raises(ClusterError, match="has no worker"):
        run_all(divmod, [(1, 2)], cluster=address)


@pytest.mark.parametrize(
    ("package", "version", "said"),
    [
        ("splitload", None, "lacks splitload"),
        ("splitload", "9.9", "has splitload 9.9"),
        ("python", "2.7.18.final.0", "2.7"),
    ],
)
def test_workers_of_other_versions_are_refused(
    cluster: str, monkeypatch: pytest.MonkeyPatch, package: str, version: str | None, said: str
) -> None:
    import distributed

    asked: Callable[..., Any] = distributed.Client.get_versions

    def other(client: Any, **kwargs: Any) -> Any:
        versions = asked(client, **kwargs)
        next(iter(versions["workers"].values()))["packages"][package] = version
        return versions

    monkeypatch.setattr(distributed.Client, "get_versions", other)
    with pytest.raises(ClusterError, match=said):
        run_all(divmod, [(1, 2)], cluster=cluster)
