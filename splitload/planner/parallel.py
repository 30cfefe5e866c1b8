"""Search jobs that run beside each other: in processes on this machine, or on the workers of a Dask cluster.

joblib and Dask send functions and data by pickle, between processes of one user or one trusted cluster: whoever can
reach a Dask scheduler can run code on its workers, and its answers are unpickled here. No file of ours is a pickle.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import joblib

from splitload.base.errors import ClusterError, MissingPackageError, StageError, UsageError
from splitload.base.machine import available_threads
from splitload.base.packages import install
from splitload.measure.process import isolated_workers

CONNECT_S = 5.0
WORKERS_S = 10.0  # an adaptive cluster starts its workers when it is asked for them

Result = TypeVar("Result")


def run_all(
    function: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    *,
    workers: int | None = None,
    cluster: str | None = None,
    on_done: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Return `function(*job)` of each job, in their order.

    Jobs are pure Python, which threads cannot speed up, so each worker is a process that imports what it needs. An
    interrupt ends the processes. Of a cluster it withdraws what has not begun; jobs that run there go on to their end,
    and nobody reads what they return.

    Args:
        function: Of a module that a worker can import, as are the types of what it takes and returns.
        jobs: The arguments of each call.
        workers: Processes at a time, at least 1; by default one for each available thread. With 1 everything runs in
            this process.
        cluster: Address of a Dask scheduler, `tcp://HOST:PORT`, whose workers run the jobs instead; they must have
            this version of splitload and of Python.
        on_done: Called here with each result, in the order of the jobs.

    Raises:
        UsageError: If the address is none, or `workers` is given beside it.
        MissingPackageError: If the package that speaks with a cluster is missing.
        ClusterError: If the cluster cannot be reached, or its workers cannot run the jobs.
        StageError: If a process was ended from outside.
        Exception: Whatever a job raised, as it was; the others are given up.
    """
    if cluster is not None:
        if workers is not None:
            raise UsageError("give a number of processes or a cluster, not both: a cluster runs as many as it can")
        check_cluster(cluster)
        with _quiet(), _connected(cluster) as client:
            return _on_cluster(client, function, jobs, on_done)
    workers = min(available_threads() if workers is None else workers, len(jobs))
    if workers <= 1:
        return list(_told((function(*job) for job in jobs), on_done))
    try:
        with isolated_workers(), joblib.parallel_config("loky", n_jobs=workers):
            return _run(function, jobs, on_done)
    except BrokenExecutor as error:
        raise StageError(
            f"one of {workers} search processes was ended from outside, perhaps for lack of memory; use fewer"
        ) from error


def check_cluster(address: str) -> None:
    """Raise what `run_all` would raise, if no scheduler answers at this address; takes up to `CONNECT_S` seconds.

    Raises:
        UsageError: If the address is none.
        MissingPackageError: If the package that speaks with a cluster is missing.
        ClusterError: If there is no answer.
    """
    try:
        parts = urlsplit(address)
        complete = bool(parts.scheme == "tcp" and parts.hostname and parts.port)
    except ValueError:  # of a port that is no number
        complete = False
    if not complete or parts.path or parts.query or parts.fragment:
        raise UsageError(f"a cluster is given as tcp://HOST:PORT, where its Dask scheduler listens, not '{address}'")
    try:
        from distributed.comm import connect
    except ImportError as error:
        raise MissingPackageError(
            f"a cluster needs the package 'distributed'. Install it: {install('cluster')}"
        ) from error

    async def answered() -> None:
        comm = await connect(address, timeout=CONNECT_S)
        await comm.close()

    try:
        # A client itself would wait without end for something that listens but is no scheduler.
        asyncio.run(asyncio.wait_for(answered(), CONNECT_S))
    except OSError as error:  # a timeout is one
        raise ClusterError(
            f"no Dask scheduler answered at {address} within {CONNECT_S:.0f} s; start one with 'dask scheduler', and "
            f"workers with 'dask worker {address}'"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log of Dask and of what it stands on from stderr, once imported: what matters of it is raised."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client", "tornado.application")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Yield a client of the cluster, whose workers have been found to fit."""
    import distributed
    from distributed.versions import VersionMismatchWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VersionMismatchWarning)  # what has to match is checked below
        client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKERS_S)
        except distributed.TimeoutError as error:
            raise ClusterError(
                f"the cluster at {address} has no worker; start one with 'dask worker {address}'"
            ) from error
        versions = client.get_versions(packages=["splitload"])
        mine = versions["client"]["packages"]
        for worker, theirs in versions["workers"].items():
            _check_versions(worker, theirs["packages"], mine)
        yield client


def _check_versions(worker: str, theirs: dict[str, str | None], mine: dict[str, str | None]) -> None:
    """Raise `ClusterError` where a worker has another splitload than this process, or another Python."""
    if theirs["splitload"] is None:
        raise ClusterError(f"the worker {worker} lacks splitload; install version {mine['splitload']} there")
    for name, parts in {"splitload": None, "python": 2}.items():
        there, here = (".".join(str(each[name]).split(".")[:parts]) for each in (theirs, mine))
        if there != here:
            raise ClusterError(f"the worker {worker} has {name} {there}, here it is {here}; they must be the same")


def _on_cluster(
    client: Any,
    function: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    on_done: Callable[[Result], None] | None,
) -> list[Result]:
    """Run the jobs on a cluster; when the client is closed, what has not begun is withdrawn."""
    from distributed import CancelledError, KilledWorker

    futures = [client.submit(function, *job, pure=False) for job in jobs]  # equal jobs are run each
    try:
        return list(_told(_in_order(client, futures), on_done))
    except (KilledWorker, CancelledError) as error:
        raise ClusterError(
            "the cluster gave up a job, or was lost; its scheduler and workers log the reason"
        ) from error


def _in_order(client: Any, futures: Sequence[Any]) -> Iterator[Any]:
    """Yield the results of Dask's futures in their order, but raise an error as soon as there is one."""
    from distributed import as_completed

    results = {}
    rest = iter(futures)
    awaited = next(rest, None)
    for done in as_completed(futures, loop=client.loop):
        results[done] = done.result()
        while awaited in results:
            yield results.pop(awaited)
            awaited = next(rest, None)


def _run(
    function: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], on_done: Callable[[Result], None] | None
) -> list[Result]:
    """Run the jobs with joblib, as it is configured."""
    results = None
    with _giving_up_unsaid():
        try:
            with _deaf_children():
                results = joblib.Parallel(return_as="generator")(joblib.delayed(function)(*job) for job in jobs)
            return list(_told(results, on_done))
        finally:
            if results is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that jobs are given up
                    results.close()


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Have processes that are started meanwhile take no Ctrl-C, which a terminal sends to all: this one ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it would start with the first worker, and unblock what is blocked here
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children begin with what is blocked here
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _giving_up_unsaid() -> Iterator[None]:
    """Keep a traceback of joblib 1.6 from stderr: its thread may look for a job that it has given up (KeyError)."""
    usual = threading.excepthook

    def hook(raised: threading.ExceptHookArgs) -> None:
        ours = raised.thread is not None and raised.thread.name == "ExecutorManagerThread"
        if not (ours and raised.exc_type is KeyError):
            usual(raised)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = usual


def _told(results: Iterator[Result], on_done: Callable[[Result], None] | None) -> Iterator[Result]:
    """Yield the results as they come, each once it has been told of."""
    for result in results:
        if on_done is not None:
            on_done(result)
        yield result
