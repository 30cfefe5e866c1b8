"""Runs jobs, each in a process of its own, on this machine."""

from __future__ import annotations

import json
import os
import py_compile
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from splitload.base.errors import ModelError, SplitloadError
from splitload.measure import pagecache
from splitload.measure.job import Input, Job
from splitload.measure.process import PACKAGE, python
from splitload.runtime.inputs import InputSpec, example_inputs, save_feeds

PROGRAM = Path(__file__).with_name("__main__.py")


class Runner(Protocol):
    """Runs a job somewhere: `run_job` on this machine."""

    def __call__(
        self,
        job: Job,
        folder: Path,
        failed: Callable[[str], SplitloadError],
        *,
        cold: Sequence[Path] = (),
    ) -> dict[str, Any]:
        """Return the answer; the files that it names lie in the folder then. See `run_job`.

        Another machine evicts its copies of all files that the job reads, where any are to be cold.
        """
        ...


def run_job(
    job: Job,
    folder: Path,
    failed: Callable[[str], SplitloadError],
    *,
    cold: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
    on_start: Callable[[subprocess.Popen[str]], None] = lambda _: None,
) -> dict[str, Any]:
    """Return what a fresh process answers to a job.

    Args:
        job: What it does.
        folder: Where the files of the job lie; the message lies there too meanwhile.
        failed: Returns the error to raise where it fails, of the last line that it wrote.
        cold: Files that are evicted from the page cache before, and the eviction verified.
        environment: Variables of its environment, besides those of this process.
        within: Words before its command, which run that in a group of its own for instance.
        on_start: Called with the process.

    Returns:
        The answer, as the class of the job says it. `first_at_s`, a moment, becomes `process_s`, the seconds since the
        interpreter was started; `exit_s` is when it had ended; and `touched_bytes` is what of the cold files the page
        cache held at that moment.

    Raises:
        SplitloadError: If it fails: what `failed` returned.
        StageError: If files cannot be evicted.
    """
    pagecache.evict(cold)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".job-") as made:
        message = Path(made) / "job.json"
        message.write_text(json.dumps(job.to_json()), encoding="utf-8")
        words = [str(message), str(folder.resolve())]
        if job.whole_process:
            command = python(_compiled(Path(made)), *words, str(PACKAGE.parents[1]))
        else:
            command = python(job.program, *words)
        command = [*within, *command]
        watched = cold if job.whole_process else None
        variables = None if environment is None else os.environ | environment
        return _answer(command, made, watched, failed, variables, on_start)


def _answer(
    command: list[str],
    folder: str,
    watched: Sequence[Path] | None,
    failed: Callable[[str], SplitloadError],
    environment: Mapping[str, str] | None,
    on_start: Callable[[subprocess.Popen[str]], None],
) -> dict[str, Any]:
    """Start a process and return what it answers; with `watched`, files, it waits at the moment that is measured."""
    touched_bytes = 0
    with tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8", errors="replace") as errors:
        start = time.monotonic()
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
            env=environment,
        ) as child:
            try:
                on_start(child)
                assert child.stdout is not None  # noqa: S101
                if watched is not None and child.stdout.readline():
                    touched_bytes = pagecache.resident_bytes(watched)
                answer, _ = child.communicate("\n")
            except BaseException:
                child.kill()
                raise
        if child.returncode != 0:
            errors.seek(0)
            lines = errors.read().strip().splitlines() or [f"the process ended with {child.returncode}"]
            raise failed(lines[-1][:300])
        exit_s = time.monotonic() - start
    figures: dict[str, Any] = json.loads(answer)
    if watched is not None:
        figures["exit_s"] = exit_s
        figures["process_s"] = figures.pop("first_at_s") - start
        figures["touched_bytes"] = touched_bytes
    return figures


def save_inputs(specs: Iterable[InputSpec], feeds: Mapping[str, Any], folder: Path) -> tuple[Input, ...]:
    """Return the inputs of a model as a job has them, with their values in files, the same for every process.

    What is of a type that numpy lacks has no file, and is made up by the process.

    Args:
        specs: The model's inputs.
        feeds: Their values; made up where they are missing.
        folder: Where the .npy files are written; a job in that folder names them.

    Raises:
        ModelError: If a value that is given is no array, or one cannot be made up.
        UsageError: If `feeds` names no input.
    """
    import numpy as np

    inputs = list(specs)
    for name, value in feeds.items():
        if not isinstance(value, np.ndarray):
            raise ModelError(f"input '{name}' is no array; only models on arrays can be measured on this host")
    values = example_inputs(inputs, feeds)
    paths = save_feeds({name: value for name, value in values.items() if isinstance(value, np.ndarray)}, folder)
    files = {name: Path(path).name for name, path in paths.items()}
    return tuple(
        Input(spec.name, spec.type, None if spec.shape is None else tuple(spec.shape), files.get(spec.name))
        for spec in inputs
        if spec.name in values
    )


def _compiled(folder: Path) -> Path:
    """Compile the program into a folder, with what lies beside it there, and return it: no sample is to pay for it."""
    for name in ("__main__", "epoch", "torch_arms"):
        py_compile.compile(str(PROGRAM.with_name(f"{name}.py")), str(folder / f"{name}.pyc"))
    return folder / "__main__.pyc"
