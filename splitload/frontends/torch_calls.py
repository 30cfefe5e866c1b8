"""Counts the operators of a torch module as PyTorch calls them, which is how published counts of operators come about.

Every call of a torch function on the way from the inputs to the outputs is one operator, whatever it computes: a
dropout that does nothing as well as a permutation. It is global if there is one place in what it gives, that is, if at
most one size of it is above 1: a pooling over the whole image, and all that follows it. The others are local.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.frontends.torch_packages import declare_torchvision_ops, quiet

if TYPE_CHECKING:
    import torch

    from splitload.frontends.torch import Example


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of torch functions, by their names.

    Attributes:
        local: Those that give more than one place.
        whole: Those that give one.
    """

    local: Counter[str] = field(default_factory=Counter)
    whole: Counter[str] = field(default_factory=Counter)


def calls_of(model: str) -> Calls | None:
    """Return the calls of a MODEL word of the command line; None for what is no torch module.

    Raises:
        SplitloadError: If it cannot be made.
    """
    if model.startswith("zoo:"):
        from splitload.frontends import zoo

        name = model.removeprefix("zoo:")
        if not zoo.has_module(name):
            return None
        with quiet():
            declare_torchvision_ops()
        return count_calls(*zoo.module(name))
    if ":" not in model or Path(model).exists() or model.endswith(".onnx"):
        return None
    from splitload.frontends.torch import made_by

    return count_calls(*made_by(model)[:2])


def count_calls(module: torch.nn.Module, example: Example) -> Calls:
    """Run a module on its example inputs in evaluation mode, and return which torch functions it calls.

    Args:
        module: The module, which stays as it is.
        example: Inputs of one sample, a tuple or a dict by name.
    """
    import torch
    from torch.overrides import TorchFunctionMode, resolve_name

    from splitload.torch.order import left_as_it_was

    found = Calls()

    class Counting(TorchFunctionMode):
        def __torch_function__(self, function: Any, _: Any, args: Any = (), named: Any = None) -> Any:
            result = function(*args, **(named or {}))
            if isinstance(result, torch.Tensor) and "__get__" not in str(resolve_name(function)):
                is_whole = sum(size > 1 for size in result.shape) <= 1
                (found.whole if is_whole else found.local)[getattr(function, "__name__", str(function))] += 1
            return result

    with left_as_it_was(module), torch.no_grad(), Counting():
        module.eval()
        _ = module(**example) if isinstance(example, dict) else module(*example)
    return found
