"""One worker, or one scheduler, that runs in this process until it is told to end, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from splitload.base.errors import ClusterError
from splitload.base.machine import return_memory
from splitload.base.scratch import scratch_folder
from splitload.crowd.address import Address
from splitload.crowd.certificates import security_from
from splitload.crowd.quiet import quiet
from splitload.crowd.settings import CACHE_BYTES, CACHE_FOLDER, HTTP_ADDRESS, ONE_HOST, SCRATCH, SETTINGS

START_S = 10.0  # for what answered a moment ago
CLOSE_S = 3.0  # to say farewell; a stage that still runs is not waited for, as its result is lost anyway
_BY_ITSELF = "worker-"  # so begin Dask's words for why a worker ended that its scheduler had not told to


@dataclasses.dataclass(frozen=True)
class WorkerSettings:
    """What one worker is told.

    Attributes:
        name: What it is called in the crowd.
        memory_bytes: What it says that stages may take here; None for all that the machine, or the control group, has.
        cache_folder: Where it keeps the stages it is sent.
        cache_bytes: How much may be kept there.
        port: Where other workers reach it; 0 for any.
        certificates: Folder of its certificates, if the scheduler asks for them.
    """

    name: str
    memory_bytes: int | None
    cache_folder: Path
    cache_bytes: int
    port: int = 0
    certificates: Path | None = None


def run_worker(scheduler: Address, settings: WorkerSettings, started: Callable[[Any], None]) -> str | None:
    """Run a Dask worker with one thread in this process, until SIGTERM or until the scheduler ends it.

    Args:
        scheduler: Where it belongs to; trusted, see `splitload.crowd.reach`.
        settings: What it is told.
        started: Called with the worker, once it is part of the crowd, and what importing took is given back.

    Returns:
        Why the scheduler ended it, in Dask's words; None after SIGTERM.

    Raises:
        ClusterError: If it cannot join, or the scheduler is gone.
    """
    with _without_numpy():
        import dask
        import distributed

    class CrowdWorker(distributed.Worker):  # type: ignore[misc]
        ended_for: str | None = None

        async def close(self, *args: Any, reason: str = "worker-close", **settings: Any) -> Any:
            self.ended_for = self.ended_for or reason
            return await super().close(*args, reason=reason, **settings)

    def made() -> Any:
        return CrowdWorker(
            str(scheduler),
            nthreads=1,
            name=settings.name,
            host=_listening(scheduler),
            port=settings.port,
            local_directory=str(folder),
            memory_limit=settings.memory_bytes or distributed.system.MEMORY_LIMIT,
            security=_security(settings.certificates, "worker"),
            dashboard=False,
            dashboard_address=HTTP_ADDRESS,
        )

    kept = {CACHE_FOLDER: str(settings.cache_folder), CACHE_BYTES: settings.cache_bytes}
    with (
        quiet(),
        scratch_folder(Path(tempfile.gettempdir()), "splitload-worker.") as folder,
        dask.config.set({**SETTINGS, **kept}),
    ):
        reason = asyncio.run(_run(made, started, f"the worker '{settings.name}' cannot join {scheduler}"))
    if reason is not None and reason.startswith(_BY_ITSELF):
        raise ClusterError(f"the scheduler at {scheduler} is gone, and the worker '{settings.name}' ended")
    return reason


def run_scheduler(host: str, port: int, certificates: Path | None, started: Callable[[Any], None]) -> str | None:
    """Run a Dask scheduler in this process, until SIGTERM or until a client shuts it down.

    Args:
        host: Where it listens, an IPv6 address without brackets; "" for every interface.
        port: Where it listens; 0 for any.
        certificates: Folder of its certificates; None if it asks for none.
        started: Called with the scheduler, once it listens.

    Returns:
        Why it ended; None after SIGTERM.

    Raises:
        ClusterError: If it cannot listen there.
    """
    import dask
    import distributed

    class CrowdScheduler(distributed.Scheduler):  # type: ignore[misc]
        ended_for: str | None = None

        async def close(self, *args: Any, reason: str = "unknown", **settings: Any) -> Any:
            self.ended_for = self.ended_for or reason
            return await super().close(*args, reason=reason, **settings)

    def made() -> Any:
        return CrowdScheduler(
            host=f"[{host}]" if ":" in host else host or None,
            port=port,
            protocol="tcp" if certificates is None else "tls",
            security=_security(certificates, "scheduler"),
            dashboard=False,
            dashboard_address=HTTP_ADDRESS,
        )

    with (
        quiet(),
        scratch_folder(Path(tempfile.gettempdir()), "splitload-scheduler.") as folder,
        dask.config.set({**SETTINGS, SCRATCH: str(folder)}),
    ):
        return asyncio.run(_run(made, started, f"no scheduler can listen at {host or 'any interface'}, port {port}"))


async def _run(made: Callable[[], Any], started: Callable[[Any], None], refused: str) -> str | None:
    """Run a server; return why it ended, or None if this process was told to end."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    server = None
    try:
        try:
            server = made()
            await asyncio.wait_for(server, START_S)
        except TimeoutError as error:
            raise ClusterError(f"{refused}: it was not done within {START_S:.0f} s; is it a scheduler?") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise ClusterError(f"{refused}: {_cause(error)}") from error
        _give_back()
        started(server)
        ended = asyncio.ensure_future(server.finished())
        waiting = asyncio.ensure_future(told.wait())
        await asyncio.wait({ended, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return None if told.is_set() else str(server.ended_for)
    finally:
        if server is not None:
            with contextlib.suppress(OSError):  # a timeout is one; the process ends all the same
                await asyncio.wait_for(_closed(server), CLOSE_S)
        loop.remove_signal_handler(signal.SIGTERM)


async def _closed(server: Any) -> None:
    if hasattr(server, "executors"):
        await server.close(timeout=CLOSE_S, executor_wait=False)
    else:
        await server.close()


def _security(certificates: Path | None, role: str) -> Any:
    return None if certificates is None else security_from(certificates, role)


def _listening(scheduler: Address) -> str:
    """Return where a worker listens: Dask would have it listen on every interface of the machine."""
    if scheduler.is_loopback:
        return ONE_HOST
    from distributed.utils import get_ip, get_ipv6

    host = get_ipv6(scheduler.host) if ":" in scheduler.host else get_ip(scheduler.host)
    return f"[{host}]" if ":" in host else str(host)


def _cause(error: BaseException) -> str:
    """Return the first cause of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if "name taken" in text:
        return "another worker there has this name; give --name"
    return getattr(error, "strerror", None) or text or type(error).__name__


def _give_back() -> None:
    """Return to the system what importing Dask needed for a moment: 11 MB of the 64 that a worker has by then."""
    gc.collect()
    gc.freeze()  # what is there stays, and need not be looked through again
    return_memory()


@contextlib.contextmanager
def _without_numpy() -> Iterator[None]:
    """Have what is imported find no numpy, unless it is there: Dask would make buffers with it, for 13 MB of memory.

    Dask does without where it is not installed, and so does what runs stages here.
    """
    if "numpy" in sys.modules:
        yield
        return
    sys.modules["numpy"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["numpy"]
