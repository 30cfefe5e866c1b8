"""Writes a torch module's tensors as a bundle, cut into stages in the order in which the module reads them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import nn

import splitload
from splitload.base.errors import ModelError, UsageError
from splitload.bundle.replace import replacing
from splitload.torch.format import TorchManifest, TorchStage, check_target, write_manifest, write_stage
from splitload.torch.order import Example, cut_at, default_num_stages, equal_cut, read_order
from splitload.torch.tensors import TensorPlace, check_storable, places

NamedTensor = tuple[tuple[str, ...], torch.Tensor, str]  # names, what it is, the module that it belongs to


def save(
    module: nn.Module,
    example_inputs: Example,
    bundle: str | Path,
    *,
    num_stages: int | None = None,
    split_points: Sequence[str] | None = None,
) -> None:
    """Write the parameters and buffers of a module as a bundle that `load` reads while the module runs.

    The module runs once on the example inputs, in eval mode and without gradients, to see in which order it reads its
    tensors; then it is as before. Another order later costs time and nothing else. Buffers that are not persistent are
    kept too. A tensor that stands in several places (tied weights, shared modules) is stored once, in the stage of its
    first read. What the run does not read is in the last stage.

    Args:
        module: What to save, on any device.
        example_inputs: A tensor, a tuple of arguments, or a dictionary of them by name, on the module's device.
        bundle: The folder to write, `NAME.splitload`. It is written whole or not at all; a torch bundle that stands
            there is replaced, anything else is left alone.
        num_stages: How many stages, of bytes as equal as the order allows; None: one for every 32 MiB, at most 32.
        split_points: In place of that, names of modules; a stage begins where the first tensor in one is first read.

    Raises:
        ModelError: If the module holds something that a bundle cannot (quantised modules), or cannot be run; named.
        UsageError: If the stages asked for cannot be made.
        OutputError: If the bundle cannot be written.
    """
    target = Path(bundle)
    if num_stages is not None and split_points is not None:
        raise UsageError("give num_stages or split_points, not both")
    check_target(target)
    check_storable(module)
    found = list(places(module))
    if not found:
        raise ModelError("the module holds no tensors: there is nothing to load")
    tensors = _unique(read_order(module, example_inputs, found))
    blocks = [list(block) for _, block in groupby(tensors, key=lambda each: each[2])]
    owners = [block[0][2] for block in blocks]
    sizes = [sum(tensor.nbytes for _, tensor, _ in block) for block in blocks]
    if split_points is not None:
        partition = cut_at(split_points, owners)
    else:
        partition = equal_cut(sizes, default_num_stages(sizes) if num_stages is None else num_stages)
    with replacing(target, check_target) as folder:
        stages = []
        for number, (start, end) in enumerate(partition.stages()):
            content = [(names, tensor) for block in blocks[start:end] for names, tensor, _ in block]
            file, entries = write_stage(folder, f"stage-{number:02}", content)
            stages.append(TorchStage(owners[start], file, entries))
        versions = {"splitload": splitload.__version__, "torch": torch.__version__}
        write_manifest(folder, TorchManifest(type(module).__name__, versions, tuple(stages)))


def _unique(ordered: Sequence[TensorPlace]) -> list[NamedTensor]:
    """Return every tensor once, in the order of its first place."""
    names: dict[int, list[TensorPlace]] = {}
    for place in ordered:
        names.setdefault(id(place.tensor), []).append(place)
    return [
        (tuple(place.name for place in same), same[0].tensor, same[0].name.rpartition(".")[0])
        for same in names.values()
    ]
