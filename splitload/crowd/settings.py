"""What scheduler, workers and clients of a crowd set in Dask, and why; its own defaults are for large machines."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

DEFAULT_CACHE_BYTES = 1_000_000_000  # of the disk, that a worker keeps stages on where it is told nothing
SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        # Memory. The monitor counts mapped pages of weights, which the system takes back by itself, and pauses or ends
        # workers for them; what spills writes tensors to an SD card.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
        "distributed.worker.memory.transfer": False,
        # Deaths. A process that ends closes its connections, which is seen at once. One that hangs, or whose link is
        # cut, is given up by these. A cut of 3 s must not end a worker: what TCP repeats after it may come 3 s later
        # still, as it doubles its waits, and so 5 s (Dask's least, ten heartbeats) would be too short.
        "distributed.scheduler.worker-ttl": "10s",
        "distributed.comm.timeouts.tcp": "11s",  # the least that Dask takes
        "distributed.comm.timeouts.connect": "10s",
        "distributed.comm.retry.count": 3,  # of what asks another worker for data, beyond a cut link
        "distributed.comm.retry.delay.min": "200ms",
        "distributed.comm.retry.delay.max": "2s",
        # Placement. It is the pipeline's: nothing moves a task or a copy of a result behind its back.
        "distributed.scheduler.work-stealing": False,
        "distributed.scheduler.active-memory-manager.start": False,
        # Tensors are compressed where it pays, before Dask sees them.
        "distributed.comm.compression": False,
        # What a small processor would spend on watching itself: samples of its stacks 100 times a second, a tick 50.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "500ms",
        "distributed.admin.tick.limit": "1h",  # a log line where the loop waited, as it does behind a slow stage
        "distributed.admin.system-monitor.interval": "2s",
        "distributed.admin.system-monitor.log-length": 10,
        "distributed.admin.system-monitor.disk": False,
        "distributed.admin.system-monitor.gil.enabled": False,
        "distributed.diagnostics.nvml": False,
        # What is remembered of the past, in memory.
        "distributed.admin.log-length": 100,
        "distributed.admin.low-level-log-length": 100,
        "distributed.diagnostics.computations.max-history": 10,
        "distributed.scheduler.events-cleanup-delay": "1m",
        # Pages over HTTP are neither encrypted nor asked for: they show stacks, logs and the names of tasks.
        "distributed.worker.http.routes": [],
        "distributed.scheduler.http.routes": [],
        # What a client sends with its tasks is small, as tensors and stages travel by themselves.
        "distributed.admin.large-graph-warning-threshold": "1MB",
    }
)
"""By the names that `dask.config.set` takes; the same for each process of a crowd, as each reads its part."""

CACHE_FOLDER = "splitload.crowd.cache-folder"  # Dask's setting with the folder that a worker keeps stages in
CACHE_BYTES = "splitload.crowd.cache-bytes"  # and with how much may be in it
SCRATCH = "temporary-directory"  # Dask's, where a scheduler makes a folder to import from: never in one of all users
ONE_HOST = "127.0.0.1"  # where a process listens that others on this host alone may reach
HTTP_ADDRESS = f"{ONE_HOST}:0"  # Dask's servers answer HTTP too, unencrypted: from this host alone, and with nothing
