"""A device for tests that gets nothing but messages and copies of files, and takes itself for another processor."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from splitload.base.errors import SplitloadError
from splitload.base.machine import cpu_architecture
from splitload.devices.machine import Machine
from splitload.devices.measuring import MeasuringDevice
from splitload.graphs.here import HERE
from splitload.measure.answers import check_answer
from splitload.measure.fresh import run_job
from splitload.measure.job import Job, read_job
from splitload.measure.job_files import PORTABLE_JOBS, check_portable, files_made, job_files

FAMILY = "toy64"
CPU = cpu_architecture().replace(cpu_architecture().partition("+")[0], FAMILY, 1)
# every fresh process there says so; and it has no onnx, whoever asks
_SITE = f"""\
import os, sys
real = os.uname()
os.uname = lambda: os.uname_result((*real[:4], "{FAMILY}"))
sys.modules["onnx"] = None
"""


class FarDevice(MeasuringDevice):
    """A device that gets nothing but a message and copies of the files that it needs, as one on the network does.

    Args:
        cache: The user's cache folder.
        cpu: What it calls its processor.

    Attributes:
        jobs: Kinds of the jobs that it did.
        returned_bytes: Of the files that it sent back.
        variants: Kinds of those that it loaded.
    """

    description = "a board, for tests"

    def __init__(self, cache: Path, cpu: str = CPU) -> None:
        machine = Machine("board", "the board", 2, cpu, "Toy", lambda: HERE.version, self._run)
        super().__init__(machine, cache, repeats=1)
        self.jobs: list[str] = []
        self.returned_bytes = 0
        self.variants: set[str | None] = set()

    def _run(
        self, job: Job, folder: Path, failed: Callable[[str], SplitloadError], *, cold: Sequence[Path] = ()
    ) -> dict[str, Any]:
        self.jobs.append(job.kind)
        message = json.dumps(job.to_json())
        assert f'"{folder.anchor}' not in message, "it names files of this machine"
        with tempfile.TemporaryDirectory(prefix="splitload-far-") as made:
            (Path(made) / "sitecustomize.py").write_text(_SITE, encoding="utf-8")
            there = Path(made) / "job"
            there.mkdir()
            for name, path in job_files(job, folder).items():
                (there / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, there / name)
            read = read_job(json.loads(message), PORTABLE_JOBS)
            check_portable(read)
            answer = check_answer(job, run_job(read, there, failed, environment={"PYTHONPATH": made}))
            self.variants.add(answer.get("variant"))
            for name in files_made(job, answer):
                self.returned_bytes += (there / name).stat().st_size
                shutil.copyfile(there / name, folder / name)
        return answer
