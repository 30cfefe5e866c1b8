"""The tensors of a module: where each stands, which are the same one, and what cannot be kept in a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from splitload.base.errors import ModelError
from splitload.torch.format import WORDS
from splitload.torch.reads import mirrors


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a module holds a tensor.

    Attributes:
        name: From the root, "layer1.0.weight" say.
        module: What holds it.
        key: Its name there, "weight" say.
        tensor: What stands there now.
    """

    name: str
    module: nn.Module
    key: str
    tensor: torch.Tensor

    @property
    def owner(self) -> str:
        """The name of the module that holds it, as people know it."""
        return self.name.rpartition(".")[0] or "the module itself"


def places(root: nn.Module) -> Iterator[TensorPlace]:
    """Yield every place that holds a tensor; a shared module's once for each of its names.

    Raises:
        ModelError: If a module is compiled by TorchScript, which holds its tensors out of reach.
    """
    for path, module in root.named_modules(remove_duplicate=False):
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"{named(path, module)} is compiled by TorchScript; give the module it was made from")
        prefix = f"{path}." if path else ""
        for held in (module._parameters, module._buffers):
            for key, tensor in list(held.items()):
                if tensor is not None:
                    yield TensorPlace(f"{prefix}{key}", module, key, tensor)


def check_storable(root: nn.Module) -> None:
    """Make sure that a module is no more than its parameters and buffers, and that these are plain tensors with values.

    Raises:
        ModelError: Naming the first module or tensor of which that is not so: quantised ones, which keep packed weights
            that only their own code can read, and the like.
    """
    for path, module in root.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # `places` names it
        own = {*module._parameters, *module._buffers}
        kept: dict[str, object] = {}
        module._save_to_state_dict(kept, "", True)
        packed = any(isinstance(value, torch.ScriptObject) for value in vars(module).values())
        if packed or (beside := sorted(set(kept) - own)):
            what = "packed weights" if packed else ", ".join(f"'{each}'" for each in beside)
            raise ModelError(
                f"{named(path, module)} keeps {what} besides its parameters and buffers, as quantised modules do; "
                "a torch bundle cannot hold that: save the module before it is quantised"
            )
    for place in places(root):
        tensor = place.tensor
        found = None
        if type(tensor) not in (nn.Parameter, torch.Tensor):
            found = f"a {type(tensor).__name__}"
        elif tensor.is_meta:
            found = "on the meta device, without values"
        elif tensor.is_quantized or tensor.layout != torch.strided or tensor.dtype not in WORDS:
            found = f"of {tensor.dtype}, {tensor.layout}"
        if found is not None:
            raise ModelError(
                f"'{place.name}' of {named(place.owner, place.module)} is {found}; a torch bundle holds plain tensors "
                f"of {', '.join(str(dtype).removeprefix('torch.') for dtype in WORDS)}"
            )


def check_loadable(root: nn.Module) -> None:
    """Make sure that a module keeps no tensor without values where loading does not reach.

    Raises:
        ModelError: Naming the first module that keeps one as a plain attribute, or in a list or dictionary.
    """
    for path, module in root.named_modules():
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            among = [] if mirrors(module) else [each for each in inside if isinstance(each, torch.Tensor)]
            if any(each.is_meta for each in (*among, *([value] if isinstance(value, torch.Tensor) else []))):
                raise ModelError(
                    f"{named(path, module)} keeps a tensor in its attribute '{key}', which no loading fills; make it a "
                    "buffer: register_buffer(..., persistent=False)"
                )


def named(path: str, module: nn.Module) -> str:
    """Return how an error calls a module."""
    return f"module '{path}' ({type(module).__name__})" if path else f"the module ({type(module).__name__})"
