"""Trains last layers for an epoch, in one arm's way: what the program of a fresh process runs for that.

It is run by its path, as the program is, and imports what the user of that arm would, and nothing of splitload except
in the splitload arm.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

KEYS = {
    "version", "kind", "arm", "path", "data", "trainable", "batch_size", "learning_rate", "threads", "module",
}  # fmt: skip


class _Over(Exception):
    """Raised after the epoch, so that no tail is written."""


class Stopwatch:
    """Takes the figures of a run.

    Args:
        done: Called when the first step is over.
        memory_bytes: Returns the largest resident size of this process so far, in bytes, and the present one.
    """

    def __init__(self, done: Callable[[], None], memory_bytes: Callable[[], tuple[int | None, ...]]) -> None:
        self.figures: dict[str, Any] = {"losses": []}
        self._done = done
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
            self._done()
        self.figures["losses"].append(loss)

    def end(self) -> None:
        """Note that the epoch is over."""
        self.figures["epoch_peak_bytes"] = self._memory_bytes()[0]


def train(job: dict[str, Any], folder: str, done: Callable[[], None], program: Any) -> dict[str, Any]:
    """Do a job of the kind "epoch"; return its figures.

    Args:
        job: The message.
        folder: Its folder.
        done: Called when the first step is over.
        program: The program of the fresh process, as a module.
    """
    program.check(job, KEYS)
    for key in ("path", "data"):
        job[key] = os.path.join(folder, job[key])  # noqa: PTH118
    clock = Stopwatch(done, program.memory_bytes)
    if job["arm"] == "splitload":
        program.own_splitload()
        _splitload(job, clock)
    else:
        _torch(
            job, clock, program.beside("torch_arms")["torch_module" if job["arm"] == "torch" else "mapped_module"](job)
        )
    return clock.figures


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
