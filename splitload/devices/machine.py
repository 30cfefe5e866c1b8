"""Machines that jobs run on: what a device must know of one to measure there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitload.measure.fresh import Runner


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that runs jobs: this one, or a board on the network.

    Attributes:
        name: Name of the device, as on the command line.
        words: What messages call it, for example "this host".
        threads: Loads that can run at a time.
        cpu: Its kind of processor, see `base.machine.cpu_architecture`.
        cpu_model: Its processor, for people.
        onnxruntime: Tells the version that runs there; asked when it is needed, as the import takes time.
        run: Does a job there in a fresh process.
        identity: What tells it from another machine with the same processor; "" for this one.
        expect: Told of files that jobs will read later, which may travel meanwhile.
    """

    name: str
    words: str
    threads: int
    cpu: str
    cpu_model: str
    onnxruntime: Callable[[], str]
    run: Runner
    identity: str = ""
    expect: Callable[[Sequence[Path]], None] = lambda _: None
