"""What studies of crowds have workers do; little is imported, as it counts as their memory."""

from __future__ import annotations

from typing import Any

from splitload.base.machine import return_memory
from splitload.crowd.orders import PLUGIN


def rest(dask_worker: Any) -> None:
    """Have a worker let go of the stages in its memory: a task may have come after its crowd was closed."""
    plugin = dask_worker.plugins.get(PLUGIN)
    if plugin is not None:
        plugin.residents.let_go_all()
        return_memory()


def forget_stages(dask_worker: Any) -> int | None:
    """Have a worker remove what its disk has of stages; return the bytes that are left, as they are in use.

    None where it was in no crowd yet, and so knows of no stages.
    """
    plugin = dask_worker.plugins.get(PLUGIN)
    return None if plugin is None else int(plugin.cache.clear())
