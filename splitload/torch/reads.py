"""Noticing when a tensor of a module is read, by whoever reads it and however.

A module finds its parameters and buffers in two dictionaries. While they are watched something else stands in for
them, which asks before it gives a tensor away and passes everything on to the dictionary behind it. So there is nothing
to know of who calls whom: a tensor may be read by its own module, by another one (tied weights,
`nn.MultiheadAttention`, torch's fused transformer layer), by `state_dict()` or `to()`, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import nn

Held = dict[str, torch.Tensor | None]
KINDS = ("_parameters", "_buffers")


class Watched(MutableMapping[str, "torch.Tensor | None"]):
    """A module's parameters or buffers by name; each is asked for before it is given away.

    Attributes:
        held: The dictionary behind it.
    """

    __slots__ = ("_on_read", "held")

    def __init__(self, held: Held, on_read: Callable[[str], None]) -> None:
        self.held = held
        self._on_read = on_read

    def __getitem__(self, name: str) -> torch.Tensor | None:
        if self.held.get(name) is not None:
            self._on_read(name)
        return self.held[name]

    def __setitem__(self, name: str, value: torch.Tensor | None) -> None:
        self.held[name] = value

    def __delitem__(self, name: str) -> None:
        del self.held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)

    def __contains__(self, name: object) -> bool:
        return name in self.held

    def copy(self) -> Held:
        """Return a dictionary of all of them."""
        return dict(self.items())

    def __reduce__(self) -> tuple[Any, ...]:
        """Have copies, deep ones and pickles be plain dictionaries."""
        return dict, (self.copy(),)


def mirrors(module: nn.Module) -> bool:
    """Return whether a module sets attributes in a way of its own, to keep tensors in another place besides."""
    own: Any = type(module).__setattr__
    return own is not nn.Module.__setattr__


class Watch:
    """Watches the tensors that a module itself holds, until `end`.

    Modules that keep them in another place besides (`nn.LSTM` in a list) set attributes in a way of their own to keep
    that place right. Reads there cannot be seen, so that a forward pre-hook takes all tensors of the module for read.
    No other module gets a hook: torch's fused transformer layer takes its slow path where there is one.

    Args:
        module: The module.
        on_read: Called with the name of a parameter or buffer before it is given away, perhaps from many threads. What
            it raises, the reader gets.
    """

    def __init__(self, module: nn.Module, on_read: Callable[[str], None]) -> None:
        self._module = module
        self._on_read = on_read
        self._before = {kind: vars(module)[kind] for kind in KINDS}
        self._watched = {kind: Watched(held, on_read) for kind, held in self._before.items()}
        vars(module).update(self._watched)
        self._hook = None
        if mirrors(module):
            self._hook = module.register_forward_pre_hook(self._before_forward, prepend=True)

    def _before_forward(self, module: nn.Module, arguments: Any) -> None:
        for held in self._before.values():
            for name, value in list(held.items()):
                if value is not None:
                    self._on_read(name)

    def end(self) -> None:
        """Put the dictionaries back. Each step is one that other threads see done or not done."""
        for kind, watched in self._watched.items():
            if vars(self._module)[kind] is watched:
                vars(self._module)[kind] = self._before[kind]
        if self._hook is not None:  # a call under way goes over a copy of its hooks
            self._hook.remove()
