"""A crowd on this machine: a scheduler in this process, and workers in processes of their own that end with it.

Workers listen on the loopback interface, have one thread each and no nanny, and keep stages in a folder that goes with
them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from splitload.base.errors import ClusterError, UsageError
from splitload.base.scratch import scratch_folder
from splitload.crowd.quiet import quiet
from splitload.crowd.settings import HTTP_ADDRESS, ONE_HOST, SCRATCH, SETTINGS
from splitload.measure.process import python

START_S = 30.0  # of workers: interpreters that all start at once on a small machine
_END_S = 3.0  # that workers get to end by themselves
_LOOK_EVERY_S = 0.05


class LocalCrowd:
    """A Dask cluster of processes on this machine, for `Crowd`; a context manager that leaves nothing behind.

    Attributes:
        client: A `distributed.Client` of it.
        processes: Its workers, by name.

    Args:
        workers: How many.
        memory_bytes: What each says that stages may take; None for all that the machine has.
        cache_bytes: What each may keep on disk.

    Raises:
        UsageError: If `workers` is below one.
        MissingPackageError: If dask.distributed is not installed.
        ClusterError: If a worker cannot be started.
    """

    def __init__(self, workers: int, *, memory_bytes: int | None = None, cache_bytes: int | None = None) -> None:
        if workers < 1:
            raise UsageError(f"a crowd needs a worker, not {workers}")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._options = [
            *([] if memory_bytes is None else ["--memory", str(memory_bytes)]),
            *([] if cache_bytes is None else ["--cache-size", str(cache_bytes)]),
        ]
        self._exit = contextlib.ExitStack()
        try:
            self._folder = self._exit.enter_context(scratch_folder(Path(tempfile.gettempdir()), "splitload-crowd."))
            self.client = self._exit.enter_context(_cluster(self._folder))
            self._exit.callback(self._end_workers)
            self._address = str(self.client.scheduler.address)
            for number in range(workers):
                self.add_worker(f"local-{number + 1}")
            self._wait(workers)
        except BaseException:
            self.close()
            raise

    def add_worker(self, name: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start one more worker, without waiting for it.

        Args:
            name: What it is called.
            environment: Variables that it has beside this process's.
        """
        words = python("splitload.__main__", "crowd", "worker", self._address, "--name", name, *self._options)
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "SPLITLOAD_CACHE": str(self._folder), **(environment or {})},
                start_new_session=True,  # a Ctrl-C in the terminal is for this process, which ends them
            )
        self.processes[name] = process
        return process

    def close(self) -> None:
        """End client, workers and scheduler, and remove their folder; may be called again."""
        self._exit.close()

    def _wait(self, workers: int) -> None:
        """Wait until all workers are there.

        Raises:
            ClusterError: If one has ended, or does not come.
        """
        deadline_s = time.monotonic() + START_S
        while len(self.client.scheduler_info(n_workers=-1)["workers"]) < workers:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise ClusterError(f"the worker '{name}' ended as it began: {self._last_words(name)}")
            if time.monotonic() > deadline_s:
                raise ClusterError(f"{workers} workers did not start within {START_S:.0f} s on this machine; use fewer")
            time.sleep(_LOOK_EVERY_S)

    def _last_words(self, name: str) -> str:
        lines = (self._folder / f"{name}.log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else f"exit code {self.processes[name].returncode}"

    def _end_workers(self) -> None:
        """End all workers; those that do not do so by themselves are killed."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)  # one that is stopped could not hear
                process.terminate()
        deadline_s = time.monotonic() + _END_S
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline_s - time.monotonic()))
            if process.poll() is None:
                process.kill()
            process.wait()

    def __enter__(self) -> LocalCrowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def _cluster(folder: Path) -> Iterator[Any]:
    """Yield a client of a scheduler in this process that has no workers yet, and writes into `folder` alone."""
    import dask
    import distributed

    with (
        dask.config.set({**SETTINGS, SCRATCH: str(folder)}),
        quiet(),
        distributed.LocalCluster(
            n_workers=0, processes=False, host=ONE_HOST, protocol="tcp", dashboard_address=HTTP_ADDRESS, silence_logs=50
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client
