"""The fresh process of the study of personalization: trains last layers for an epoch, in one arm's way.

It reads a job, a JSON file, and answers as the benchmark's process does. It is run by its path and imports what the
user of that arm would, and nothing of splitload except in the splitload arm.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from typing import Any


class _Over(Exception):
    """Raised after the epoch, so that no tail is written."""


class Stopwatch:
    """Takes the figures of a run.

    Args:
        job: What is to be done.
        answer: The file to say in that the first step is over.
        memory_bytes: Returns the largest resident size of this process so far, in bytes, and the present one.
    """

    def __init__(self, job: dict[str, Any], answer: Any, memory_bytes: Callable[[], tuple[int | None, ...]]) -> None:
        self.job = job
        self.figures: dict[str, Any] = {"losses": []}
        self._answer = answer
        self._memory_bytes = memory_bytes
        self._start = 0.0

    def start(self) -> None:
        """Note that everything is imported."""
        self._start = time.perf_counter()

    def step(self, loss: float) -> None:
        """Note that a step was made."""
        if not self.figures["losses"]:
            self.figures["first_step_s"] = time.perf_counter() - self._start
            self.figures["first_at_s"] = time.monotonic()
            self.figures["first_step_peak_bytes"] = self._memory_bytes()[0]
            print("first", file=self._answer, flush=True)
            sys.stdin.readline()
        self.figures["losses"].append(loss)

    def end(self) -> None:
        """Note that the epoch is over."""
        self.figures["epoch_peak_bytes"] = self._memory_bytes()[0]


def main() -> None:
    """Answer one job; where that fails, say why in the last line on stderr."""
    if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):  # noqa: PTH100, PTH120 - pathlib is slow to import
        del sys.path[0]
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123
        job = json.load(file)
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed is no answer
    try:
        engines = runpy.run_path(job["engines"])
        clock = Stopwatch(job, answer, engines["memory_bytes"])
        if job["arm"] == "splitload":
            _splitload(job, clock)
        else:
            _torch(job, clock, engines["torch_module" if job["arm"] == "torch" else "mapped_module"](job))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
    answer.write(json.dumps(clock.figures) + "\n")
    answer.close()


def _splitload(job: dict[str, Any], clock: Stopwatch) -> None:
    """`splitload finetune`, called as a function."""
    import onnxruntime  # noqa: F401 - before the clock starts, as torch is

    from splitload.deploy.arguments import Settings
    from splitload.deploy.epochs import Epoch
    from splitload.deploy.personalize import personalize

    def over(_: Epoch) -> None:
        clock.end()
        raise _Over

    settings = Settings(epochs=1, batch_size=job["batch_size"], learning_rate=job["learning_rate"])
    clock.start()
    with contextlib.suppress(_Over):
        personalize(
            job["path"], job["data"], settings=settings, on_step=lambda _, loss: clock.step(loss), on_epoch=over
        )


def _torch(job: dict[str, Any], clock: Stopwatch, load_module: Callable[[], Any]) -> None:
    """The whole module loaded, all but the last layers frozen: what comes before them is kept by no tape."""
    import inspect
    import re

    import numpy as np
    import torch
    from torch.nn import functional

    torch.set_num_threads(job["threads"])
    clock.start()
    module = load_module().eval()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(re.search(rf"(?<!\w)(?:{job['trainable']})(?!\w)", name) is not None)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=job["learning_rate"])
    with np.load(job["data"], allow_pickle=False) as stored:
        values = {name: torch.from_numpy(stored[name]) for name in stored.files}
    target = values.pop("y")
    by_name = values.keys() <= inspect.signature(module.forward).parameters.keys()
    order = np.random.default_rng(0).permutation(len(target))  # as `splitload finetune` takes the samples
    for start in range(0, len(target), job["batch_size"]):
        rows = torch.from_numpy(np.sort(order[start : start + job["batch_size"]]))
        batch = {name: value[rows] for name, value in values.items()}
        output = module(**batch) if by_name else module(*batch.values())
        loss: Any = functional.cross_entropy(output if torch.is_tensor(output) else output.logits, target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.step(loss.item())
    clock.end()


if __name__ == "__main__":
    main()
