"""What a served device does with a job: the fresh-process protocol, once more where its processors were throttled."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

from splitload.base.errors import BundleError, SplitloadError, StageError
from splitload.bundle.references import weight_files
from splitload.deploy.conditions import Conditions, conditions, throttled
from splitload.measure.fresh import run_job
from splitload.measure.job import Job, read_job
from splitload.measure.job_files import PORTABLE_JOBS, check_portable, job_files

MOST_S = 900.0  # of one job
TRIES = 3  # of a sample that was throttled
COOL_S, COOL_STEP_S = 60.0, 2.0  # how long to wait for a processor to cool, and between looks
COOLER_C = 5.0  # below its limit
_ORT_HEAD = b"ORTM"  # after the first four bytes of a flatbuffer


class Measured:
    """Does jobs of measuring on this machine; a `splitload.deploy.orders.Work`.

    Args:
        look: Returns how the machine is now.
    """

    def __init__(self, look: Callable[[], Conditions] = conditions) -> None:
        self._look = look
        self._usual_ceiling_hz = look().ceiling_hz

    def check(self, job: Any) -> None:
        """Raise `UsageError` if a message is no job that may be done here."""
        check_portable(_read(job))

    def do(
        self, job: Any, folder: Path, cold: bool, tell: Callable[[dict[str, Any]], None], stop: threading.Event
    ) -> dict[str, Any]:
        """Return the answer, with `conditions`: before, after, and how often the sample was repeated and why.

        Raises:
            SplitloadError: If it fails.
        """
        read = _read(job)
        check_files(read, folder)
        files = list(job_files(read, folder).values()) if cold else []
        repeated: list[str] = []
        while True:
            if stop.is_set():
                raise StageError("the job was stopped: its order was ended")
            before = self._look()
            with _Limited(stop) as started:
                answer = run_job(read, folder, StageError, cold=files, on_start=started)
            after = self._look()
            self._usual_ceiling_hz = max(filter(None, (self._usual_ceiling_hz, after.ceiling_hz)), default=None)
            reason = throttled(before, after, self._usual_ceiling_hz)
            if reason is None or len(repeated) == TRIES - 1:
                break
            repeated.append(reason)
            tell({"event": "throttled", "reason": reason})
            self._cool(stop)
        answer["conditions"] = {
            "before": before.to_json(), "after": after.to_json(), "throttled": reason, "repeated": repeated,
        }  # fmt: skip
        return answer

    def _cool(self, stop: threading.Event) -> None:
        """Wait until the processors have cooled, but not for long."""
        began_s = time.monotonic()
        while time.monotonic() - began_s < COOL_S and not stop.wait(COOL_STEP_S):
            now = self._look()
            if now.headroom_c is None or now.headroom_c >= COOLER_C:
                return


def check_files(job: Job, folder: Path) -> None:
    """Make sure that graphs read nothing but files that came with the job, and that all it reads is there.

    Raises:
        BundleError: If not.
        UsageError: If it names as a graph what is none.
    """
    for graph in folder.rglob("*.ort"):
        with graph.open("rb") as opened:
            if opened.read(len(_ORT_HEAD) + 4)[4:] != _ORT_HEAD:
                raise BundleError(f"'{graph.name:.80}' is no graph in onnxruntime's format; refused")
    for graph in folder.rglob("*.onnx"):
        for name in weight_files(graph):
            if not (graph.parent / name).is_file():
                raise BundleError(
                    f"'{graph.name:.80}' reads weights from {name!r:.80}, which was not sent with it; refused"
                )
    try:
        read = job_files(job, folder)
    except FileNotFoundError as error:
        raise BundleError(f"the job reads '{Path(error.filename).name:.80}', which was not sent; refused") from error
    for name, place in read.items():
        if not place.is_file():
            raise BundleError(f"the job reads {name!r:.80}, which was not sent; refused")


def end_left_jobs(folder: Path) -> None:
    """Kill the processes of jobs whose service was killed: they would run beside the next jobs (Linux).

    Args:
        folder: Where jobs run, each in a folder of its own; nobody runs any there now.
    """
    place = re.escape(f"{folder.resolve()}{os.sep}".encode())
    message = re.compile(place + rb"[0-9a-f]{32}/\.job-[^/]+/job\.json")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it is gone, or another user's
            if any(map(message.fullmatch, (process / "cmdline").read_bytes().split(b"\0"))):
                os.kill(int(process.name), signal.SIGKILL)


class _Limited:
    """A block in which a process is killed where nobody wants its answer any more, or it takes too long."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._late = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Callable[[Popen[str]], None]:
        return self._started

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(error, SplitloadError) and (self._late or self._stop.is_set()):
            what = f"it took more than {MOST_S:g} s" if self._late else "its order was ended"
            raise StageError(f"the job was stopped: {what}") from error

    def _started(self, child: Popen[str]) -> None:
        _first_to_go(child.pid)
        self._timer = threading.Timer(MOST_S, self._too_late, (child,))
        self._timer.start()
        threading.Thread(target=self._ended, args=(child,), daemon=True).start()

    def _too_late(self, child: Popen[str]) -> None:
        self._late = True
        child.kill()

    def _ended(self, child: Popen[str]) -> None:
        self._stop.wait()  # every order is ended some time; a process that is gone by then stays as it is
        child.kill()


def _first_to_go(process: int) -> None:
    """Have the system end a job's process before the service, where memory runs out (Linux)."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{process}/oom_score_adj").write_text("900", encoding="ascii")


def _read(job: Any) -> Job:
    return read_job(job, PORTABLE_JOBS)
