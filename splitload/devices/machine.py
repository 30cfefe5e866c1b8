"""Machines that jobs run on: what a device must know of one to measure there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from splitload.base.errors import SplitloadError
from splitload.measure.fresh import Runner
from splitload.measure.job import Job
from splitload.measure.job_files import job_files


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
        is_cold: Whether the files that a job reads are evicted from the page cache before it.
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
    is_cold: bool = False

    def cold(self) -> Machine:
        """Return the machine, with the files that a job reads evicted from its page cache before each."""

        def run(
            job: Job, folder: Path, failed: Callable[[str], SplitloadError], *, cold: Sequence[Path] = ()
        ) -> dict[str, Any]:
            files = [path.resolve() for path in job_files(job, folder).values()]
            return self.run(job, folder, failed, cold=list(cold) or files)

        return replace(self, run=run, is_cold=True)
