"""In which order a module reads its tensors, and where that order is cut into stages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from splitload.base.errors import ModelError, UsageError
from splitload.plan.partition import Partition
from splitload.torch.format import as_bytes
from splitload.torch.reads import Watch
from splitload.torch.tensors import TensorPlace

Example = torch.Tensor | Sequence[Any] | Mapping[str, Any]
# Of the default stages. Nothing but the inference of the last stage is left to do when all is loaded, so that many
# small ones are better; but each is a file to open, which takes a tenth of a millisecond. To copy 32 MiB takes more
# than half of one on any device. With 32 stages what is left is a few hundredths of an inference.
STAGE_BYTES = 32 << 20
MOST_STAGES = 32


def read_order(root: nn.Module, example: Example, found: Sequence[TensorPlace]) -> list[TensorPlace]:
    """Run a module once in eval mode, without gradients, and return its places in the order of their first read.

    What the run does not read comes last. The module is left as it was: training flags, buffers, hooks.

    Args:
        root: The module.
        example: Its inputs: a tensor, a tuple, or a dictionary by the names of its arguments.
        found: All its places.

    Raises:
        ModelError: If it cannot be run.
    """
    read: dict[tuple[int, str], None] = {}
    owners = {id(place.module): place.module for place in found}
    with left_as_it_was(root):
        watches = [
            Watch(module, partial(lambda number, key: read.setdefault((number, key)), number))
            for number, module in owners.items()
        ]
        try:
            with torch.no_grad():
                root.eval()
                run(root, example)
        except Exception as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise ModelError(f"the module cannot be run on the example inputs: {text}") from error
        finally:
            for watch in watches:
                watch.end()
    turn = {place: number for number, place in enumerate(read)}
    return sorted(found, key=lambda place: turn.get((id(place.module), place.key), len(turn)))


def run(root: nn.Module, example: Example) -> Any:
    """Call a module with example inputs."""
    if isinstance(example, Mapping):
        return root(**example)
    return root(example) if isinstance(example, torch.Tensor) else root(*example)


@contextlib.contextmanager
def left_as_it_was(root: nn.Module) -> Iterator[None]:
    """Give a module its training flags and the values of its buffers back."""
    flags = [(module, module.training) for module in root.modules()]
    buffers = [
        (module, key, buffer, buffer.clone())
        for module in root.modules()
        for key, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for module, key, buffer, value in buffers:
                module._buffers[key] = buffer
                if not torch.equal(as_bytes(buffer), as_bytes(value)):  # expanded ones cannot be written to
                    buffer.copy_(value)


def default_num_stages(sizes: Sequence[int]) -> int:
    """Return how many stages blocks of so many bytes make where nobody says."""
    return max(1, min(sum(sizes) // STAGE_BYTES, MOST_STAGES, len(sizes)))


def equal_cut(sizes: Sequence[int], num_stages: int) -> Partition:
    """Return the cut of blocks into stages whose largest stage is as small as can be.

    Args:
        sizes: Bytes of each block.
        num_stages: At least 1, at most as many as there are blocks.

    Raises:
        UsageError: If there are not so many blocks.
    """
    if isinstance(num_stages, bool) or not isinstance(num_stages, int) or not 1 <= num_stages <= len(sizes):
        raise UsageError(f"num_stages must be a whole number from 1 to {len(sizes)}, it is {num_stages!r}")
    low, high = max(sizes), sum(sizes)
    while low < high:  # the smallest limit that `num_stages` stages can keep
        middle = (low + high) // 2
        if len(_filled(sizes, middle, num_stages)) < num_stages:
            low, high = low, middle
        else:
            low = middle + 1
    return Partition.of(len(sizes), _filled(sizes, low, num_stages))


def _filled(sizes: Sequence[int], limit: int, num_stages: int) -> list[int]:
    """Return split points where each stage is filled up to a limit, but leaves each one after it a block."""
    points: list[int] = []
    filled = 0
    for number, size in enumerate(sizes):
        left = len(sizes) - number  # blocks, this one included
        if number and (filled + size > limit or left <= num_stages - 1 - len(points)):
            points.append(number)
            filled = 0
        filled += size
    return points


def cut_at(names: Sequence[str], owners: Sequence[str]) -> Partition:
    """Return the cut where a stage begins with the first read of each of the named modules.

    Args:
        names: Modules, each with what is inside it.
        owners: The module that each block belongs to, in the order of their first read.

    Raises:
        UsageError: If one is no module with tensors, is read first of all, or begins where another one does.
    """
    points = []
    for name in names:
        at = next((number for number, owner in enumerate(owners) if f"{owner}.".startswith(f"{name}.")), None)
        if at is None:
            raise UsageError(f"split point '{name}' is no module that holds tensors")
        if at == 0 or at in points:
            raise UsageError(f"split point '{name}' begins where a stage begins already")
        points.append(at)
    return Partition.of(len(owners), sorted(points))
