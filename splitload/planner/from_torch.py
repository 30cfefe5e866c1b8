"""`splitload.from_torch`: what `splitload train` does, for a torch module at hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.base.cache import user_cache
from splitload.base.errors import OutputError
from splitload.base.packages import named
from splitload.base.scratch import scratch_folder
from splitload.bundle.write import check_target
from splitload.plan.objectives import DEFAULT_OBJECTIVE
from splitload.planner.report import LogReport
from splitload.planner.request import TrainRequest

if TYPE_CHECKING:
    import torch

    from splitload.frontends.torch import Example


def from_torch(
    module: torch.nn.Module,
    example_inputs: Example,
    bundle: str | Path,
    *,
    device: str = "host",
    dynamic_shapes: Any = None,
    trainable: str | int | None = None,
    new_head: int | None = None,
    objective: str = DEFAULT_OBJECTIVE,
    max_stages: int | None = None,
    residency: str | int | None = None,
    crowd: str | None = None,
    budget: int | None = None,
    seed: int = 0,
) -> Path:
    """Export a torch module, search how to cut it, and write the bundle; needs torch and onnxscript.

    The module is exported by torch's exporter (dynamo), in evaluation mode, with its weights written one after the
    other to a file; that the file computes the same as the module is checked on the example inputs, which the device
    is measured with too. The module stays as it is. One with bfloat16 weights becomes a bundle in float32.

    Args:
        module: The module.
        example_inputs: A tuple of tensors, or a dict of them by the names of the parameters of `forward`.
        bundle: The folder to write, `NAME.splitload`; a bundle that is there is replaced.
        device: host, a simulated device's name (see 'splitload devices'), the address of a device on which 'splitload
            serve' runs, or a file.
        dynamic_shapes: Which sizes of the inputs stay open, as `torch.export.export` takes it, for example
            `({0: "batch"},)`; by default none.
        trainable: Layers that stay together in the last stage: a count of last layers, or a pattern of their names.
        new_head: Replace the last linear layer by a fresh one of so many classes, to be trained on the device; without
            --trainable it alone is trainable.
        objective: balance: equal load times; latency: the shortest time of a batch on a --crowd; steady: the shortest
            inference once all is loaded, with what --residency lets go of; throughput: the most outputs a second of a
            --crowd; ttfo: the shortest time to first output.
        max_stages: The most stages (default: 8, or 16 where so many promise a twentieth).
        residency: How much may be in memory at a time: all, stage (the weights of one) or a ceiling for everything such
            as 48MB; plans fit under it, and weights are mapped from their file (default: all).
        crowd: Plan for the crowd of workers in this file, for --objective latency or throughput; --device is what their
            speeds are of.
        budget: Search with at most N measured stage loads, in place of a profile of every block (where a device
            measures); what is measured of the plan that was found comes on top.
        seed: Seed of the search.

    Returns:
        The bundle's folder.

    Raises:
        UsageError: If an argument is wrong.
        ModelError: If the module cannot be exported with equal outputs.
        SplitloadError: Whatever else went wrong; a bundle that was there is as it was.
    """
    settings: dict[str, Any] = {
        "trainable": trainable,
        "new_head": new_head,
        "objective": objective,
        "max_stages": max_stages,
        "residency": residency,
        "crowd": crowd,
        "budget": budget,
        "seed": seed,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    # what is wrong is refused before any work
    request = TrainRequest(device=device, output=str(Path(bundle)), cache=user_cache(), **given)
    check_target(request.target)
    with named("splitload.from_torch"):
        _export_and_train(request, module, example_inputs, dynamic_shapes)
    return request.target


def _export_and_train(
    request: TrainRequest, module: torch.nn.Module, example_inputs: Example, dynamic_shapes: Any
) -> None:
    """Do what a request asks for with a module, which is exported to the cache meanwhile."""
    from splitload.frontends.torch import export_given
    from splitload.frontends.torch_packages import require
    from splitload.planner.train import train

    require("torch", "onnxscript")
    exports = request.cache / "exports"
    try:
        exports.mkdir(parents=True, exist_ok=True)
        with scratch_folder(exports, ".from-torch-") as folder:
            name = re.sub(r"\W", "", type(module).__name__) or "module"
            file = folder / f"{name}.onnx"
            feeds = export_given(module, example_inputs, file, name=name, dynamic_shapes=dynamic_shapes)
            try:
                train(replace(request, model=str(file), feeds=feeds), LogReport())
            except KeyboardInterrupt:  # what it advises names files that are gone now
                bundle = request.output
                raise KeyboardInterrupt(f"interrupted; '{bundle}' is as it was, or complete") from None
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write to '{exports}': {error.strerror or error}") from error
