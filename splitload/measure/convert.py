"""Writes the files that other engines read, in a fresh process.

Packages are imported by the arm that needs them.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splitload.base.errors import ModelError
from splitload.frontends import zoo
from splitload.frontends.torch import current_folder_importable
from splitload.frontends.torch_packages import declare_torchvision_ops, quiet
from splitload.graphs.here import HERE
from splitload.graphs.observe import plain_options
from splitload.graphs.optimize import optimize
from splitload.graphs.runtime import GraphRuntime, Level, is_of_device
from splitload.measure.job import ConvertModel
from splitload.runtime.stock import path_option, stock_session

if TYPE_CHECKING:
    import torch

BATCH = "batch.json"  # which dimension is the batch in each input and output of a model of ncnn
_PNNX_TYPES = {"float32": "f32", "float16": "f16", "int64": "i64", "int32": "i32", "int8": "i8", "uint8": "u8"}


def answer(job: ConvertModel, folder: Path) -> dict[str, Any]:
    """Write the files of one arm."""
    inputs = (each if each.file is None else replace(each, file=str(folder / each.file)) for each in job.inputs)
    CONVERSIONS[job.arm](replace(job, inputs=tuple(inputs)), Path(job.target))
    return {}


def _tuned(job: ConvertModel, folder: Path) -> None:
    """Save the model as onnxruntime optimises it, weights in a file of their own."""
    tune_into(Path(job.graph), folder, HERE)


def tune_into(graph: Path, folder: Path, runtime: GraphRuntime) -> None:
    """Save a model as a runtime optimises it, as `model.onnx` in a folder.

    Raises:
        Exception: onnxruntime's and onnx's, which have no common root.
        DeviceError: If the runtime is a device's, and that is lost.
    """
    levels: tuple[Level, ...] = ("all", "basic", "none")
    for level in levels:
        try:
            optimize(graph, folder, level, runtime)
        except Exception as error:  # a model that was optimised before cannot be optimised again
            if level == "none" or is_of_device(error):
                raise
        else:
            return


def _ort_format(job: ConvertModel, folder: Path) -> None:
    """Save the optimised graph, as it is, in onnxruntime's own format, weights inside."""
    options = plain_options()
    options.optimized_model_filepath = path_option(folder / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    stock_session(job.graph, options)


def _state_dict(job: ConvertModel, folder: Path) -> None:
    import torch

    torch.save(_module(job.model).state_dict(), folder / "model.pt")


def _safetensors(job: ConvertModel, folder: Path) -> None:
    """Save the state dict, and the buffers that are not in it, which a module built without memory lacks."""
    from safetensors.torch import save_file

    module = _module(job.model)
    tensors = dict(module.named_buffers()) | module.state_dict()
    # safetensors refuses tensors that share memory
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, folder / "model.safetensors")


def _ncnn(job: ConvertModel, folder: Path) -> None:
    """Trace the module and have pnnx convert it, with its defaults: weights are stored in half precision."""
    import pnnx
    import torch

    values = [np.load(each.file, allow_pickle=False) for each in job.inputs if each.file is not None]
    traced = folder / "model.pt"
    with quiet(), torch.inference_mode():
        module = _by_position(_module(job.model), [each.name for each in job.inputs])
        trace: Any = torch.jit.trace
        trace(module, tuple(map(torch.from_numpy, values)), check_trace=False).save(str(traced))
    shapes = ",".join(f"{list(value.shape)}{_PNNX_TYPES[str(value.dtype)]}".replace(" ", "") for value in values)
    command = [pnnx.EXEC_PATH, traced.name, f"inputshape={shapes}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False)
    wanted = {folder / "model.ncnn.param", folder / "model.ncnn.bin"}
    if done.returncode != 0 or not all(file.is_file() for file in wanted):
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise ModelError(f"pnnx: {lines[-1]}")
    script = (folder / "model_ncnn.py").read_text(encoding="utf-8")  # how to hand in and take out tensors
    batch = {
        "inputs": [int(index) for index in re.findall(r"ex\.input\(.*batch_index=(\d+)\)", script)],
        "outputs": [int(index) for index in re.findall(r"out\d+\.numpy\(batch_index=(\d+)\)", script)],
    }
    for file in folder.iterdir():
        if file not in wanted:
            file.unlink()
    (folder / BATCH).write_text(json.dumps(batch), encoding="utf-8")


CONVERSIONS: dict[str, Callable[[ConvertModel, Path], None]] = {
    "tuned": _tuned,
    "ort-format": _ort_format,
    "torch": _state_dict,
    "torch-mmap": _safetensors,
    "ncnn": _ncnn,
}


def _module(model: str) -> torch.nn.Module:
    """Return the torch module behind a MODEL word, with the weights that its .onnx file has."""
    import torch

    declare_torchvision_ops()
    if model.startswith("zoo:"):
        module, _ = zoo.module(model.removeprefix("zoo:"))
    else:
        package, _, name = model.partition(":")
        with current_folder_importable(), quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
            module, _ = getattr(importlib.import_module(package), name)()
    return module.eval()


def _by_position(module: torch.nn.Module, names: Sequence[str]) -> torch.nn.Module:
    """Return a module that takes inputs in this order, by name where the inner one knows the names, for tracing."""
    import inspect

    import torch

    by_name = set(names) <= inspect.signature(module.forward).parameters.keys()

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            result = self.inner(**dict(zip(names, tensors, strict=True))) if by_name else self.inner(*tensors)
            return tuple(leaf for leaf in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(leaf))

    return Positional().eval()
