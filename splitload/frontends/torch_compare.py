"""Whether an exported file computes what its torch module does, on the example inputs and on larger ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splitload.base.errors import ModelError
from splitload.frontends.torch_packages import quiet
from splitload.graphs.observe import one_line, plain_options
from splitload.runtime.stock import stock_session

if TYPE_CHECKING:
    import torch

    from splitload.frontends.torch import Example

_TOLERANCE = {"float16": 1e-2, "float32": 1e-4, "float64": 1e-4}  # of the largest magnitude; other types are equal


def compare_longer(name: str, file: Path, module: torch.nn.Module, example: Example) -> None:
    """Compare once more with each open size one longer: the exporter may have fixed it to that of the example.

    Only names are known of open sizes, so equal names grow together; where torch itself refuses these inputs, there is
    nothing to compare.
    """
    import torch

    session = stock_session(str(file), plain_options())
    tensors = dict(by_name([value.name for value in session.get_inputs()], example))
    for value in session.get_inputs():
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int):
                tensor = tensors[value.name]
                tensors[value.name] = torch.cat([tensor, tensor.narrow(axis, tensor.shape[axis] - 1, 1)], axis)
    longer = tensors if isinstance(example, dict) else tuple(tensors.values())
    args, kwargs = ((), longer) if isinstance(longer, dict) else (longer, {})
    try:
        with quiet(), torch.no_grad():
            expected = module(*args, **kwargs)
    except Exception:  # whatever the module's own code raises
        return
    compare(f"{name}, with open sizes one longer than the example's,", file, longer, expected)


def by_name(names: Sequence[str], example: Example) -> Iterable[tuple[str, torch.Tensor]]:
    """Yield the example inputs with the names that the file has for them, in the file's order."""
    if isinstance(example, dict):
        return ((name, example[name]) for name in names)
    return zip(names, example, strict=True)


def compare(name: str, file: Path, example: Example, expected: Any) -> None:
    """Raise `ModelError` unless the file gives the expected outputs on the example inputs; its weights stay mapped."""
    import torch

    try:
        session = stock_session(str(file), plain_options())
        named = by_name([value.name for value in session.get_inputs()], example)
        outputs = session.run(None, {key: tensor.numpy(force=True) for key, tensor in named})
        leaves = torch.utils._pytree.tree_leaves(expected)
        wanted = [tensor.numpy(force=True) for tensor in leaves if torch.is_tensor(tensor)]
    except Exception as e:  # onnxruntime's errors have no common class but Exception
        raise ModelError(f"{name} was exported, but cannot be checked in onnxruntime: {one_line(e)}") from e
    if len(outputs) != len(wanted):
        raise ModelError(f"{name} was exported with {len(outputs)} outputs, but the module has {len(wanted)}")
    for index, (output, value) in enumerate(zip(outputs, wanted, strict=True)):
        largest = float(np.abs(value[np.isfinite(value)]).max(initial=0))
        tolerance = _TOLERANCE.get(str(value.dtype), 0) * largest
        if output.shape != value.shape:
            raise ModelError(f"{name} was exported, but output {index} has shape {output.shape}, not {value.shape}")
        if not np.allclose(output, value, rtol=0, atol=tolerance, equal_nan=True):
            distance = np.abs(output.astype(np.float64) - value.astype(np.float64)).max()
            raise ModelError(
                f"{name} was exported, but output {index} differs from torch's by {distance:.2g}; expected at most "
                f"{tolerance:.2g}, that is {_TOLERANCE.get(str(value.dtype), 0):g} of the largest"
            )
