"""Compares what is shared with what is not: each arm of a collaboration answers in turns, on a device and a server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from splitload.base.errors import DeviceError
from splitload.base.record import Record
from splitload.bundle.collaboration import SHARED
from splitload.deploy.collaborator import Collaborator
from splitload.deploy.shared_timeline import Moment

ARMS = ("device", "server", "layer cut", SHARED)
UNMEASURED = 2  # inferences of each arm before those that count
TRACED = 5  # shared inferences after those that count, of which the middle one is shown step by step
PATIENT_S = 30.0  # for a server, and for an inference
_PAUSE_S = 0.05  # between two, so that none waits for what another has left behind


class Answered(Record):
    """One inference.

    Attributes:
        latency_s: What it took.
        by: "both" machines or the "device" alone.
        why: Why it was alone.
    """

    latency_s: float
    by: str
    why: str


class Compared(Record):
    """What came of a comparison.

    Attributes:
        samples: Of each arm, by name.
        predicted_s: What its plan was predicted to take.
        bytes_per_s: What the link was seen to carry.
        moments: What both machines and the link did in one shared inference, see `TRACED`.
    """

    samples: Mapping[str, list[Answered]]
    predicted_s: Mapping[str, float]
    bytes_per_s: float | None
    moments: tuple[Moment, ...]


def compare(
    bundle: str | os.PathLike[str],
    server: str,
    feeds: Mapping[str, Any],
    runs: int,
    *,
    arms: Sequence[str] = ARMS,
    collaboration: str | os.PathLike[str] | None = None,
    show: Callable[[int, int], None] = lambda *_: None,
) -> Compared:
    """Run inferences by each arm in turns, each round the other way round than the one before.

    Args:
        bundle: The bundle.
        server: Its address.
        feeds: Inputs of the sizes that were planned with.
        runs: Inferences of each arm.
        arms: Their names; `SHARED` is among them.
        collaboration: Where the plans are; None for the place beside the bundle.
        show: Called with rounds done and in all.

    Raises:
        DeviceError: If the server does not help.
        SplitloadError: If an arm cannot be opened.
    """
    samples: dict[str, list[Answered]] = {name: [] for name in arms}
    with ExitStack() as opened:
        loaders = {}
        for name in arms:
            address = None if name == "device" else server
            loader = Collaborator(bundle, address, collaboration=collaboration, arm=name, deadline_s=PATIENT_S)
            loaders[name] = opened.enter_context(loader)
        for name, loader in loaders.items():
            loader.wait("loaded")
            if name != "device" and not loader.wait_for_server(PATIENT_S):
                raise DeviceError(f"the server does not help: {loader.why_alone}")
        for number in range(-UNMEASURED, runs):
            show(max(number, 0), runs)
            for name in arms[:: 1 if number % 2 else -1]:
                loaders[name].run(None, feeds)
                last = loaders[name].last
                if number >= 0 and last is not None:
                    samples[name].append(Answered(last.latency_s, last.by, last.why))
                time.sleep(_PAUSE_S)
        predicted_s = {name: loader.predicted_s for name, loader in loaders.items()}
        return Compared(samples, predicted_s, loaders[SHARED].bytes_per_s, _traced(loaders[SHARED], feeds))


def _traced(loader: Collaborator, feeds: Mapping[str, Any]) -> tuple[Moment, ...]:
    """Return what is done in the inference of median latency among some that are traced; nothing if none is shared."""
    loader.is_traced = True
    found: list[tuple[float, tuple[Moment, ...]]] = []
    for _ in range(TRACED):
        loader.run(None, feeds)
        if loader.last is not None and loader.last.by == "both":
            found.append((loader.last.latency_s, loader.moments))
        time.sleep(_PAUSE_S)
    return sorted(found, key=lambda each: each[0])[len(found) // 2][1] if found else ()
