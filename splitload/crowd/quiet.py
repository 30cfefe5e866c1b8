"""Keeps Dask's log from stderr: what matters of it is raised, or told by a command."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_DASK = ("distributed", "distributed.client", "distributed.scheduler", "distributed.worker")
_LOGGERS = (*_DASK, "tornado.application", "asyncio")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let nothing of it through while the block runs; Dask has been imported before, which sets what it logs."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
