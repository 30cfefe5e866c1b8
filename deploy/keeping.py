"""A thread that keeps a loader's connection up, for as long as somebody has the loader."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TypeVar

from splitload.deploy.channel import Channel

Kept = TypeVar("Kept")


def begin_keeping(
    kept: Kept,
    keep_up: Callable[[Kept, bool], tuple[Channel | None, float | None]],
    end: threading.Event,
    changed: threading.Event,
    every_s: float,
) -> None:
    """Start the thread, which holds what it keeps only while it works on it.

    Args:
        kept: What has the connection.
        keep_up: Connects it, or does what the connection needs, and is told whether nothing has changed for a while. It
            returns the connection, and the seconds until all is tried again; None for these where all is well.
        end: Set when it is closed; it is set here when nobody has it any more.
        changed: Set when there is something to do.
        every_s: How often it is looked at besides.
    """

    def dropped(_: object) -> None:
        end.set()
        changed.set()

    held = weakref.ref(kept, dropped)
    threading.Thread(
        target=_keep, args=(held, keep_up, end, changed, every_s), name="splitload-collaborator", daemon=True
    ).start()


def _keep(
    held: weakref.ref[Kept],
    keep_up: Callable[[Kept, bool], tuple[Channel | None, float | None]],
    end: threading.Event,
    changed: threading.Event,
    every_s: float,
) -> None:
    is_idle, channel = False, None
    while not end.is_set() and (kept := held()) is not None:
        channel, wait_s = keep_up(kept, is_idle)
        del kept
        if wait_s is None:
            is_idle = not changed.wait(every_s)
            changed.clear()
        else:
            end.wait(wait_s)
    if channel is not None:
        channel.close()
