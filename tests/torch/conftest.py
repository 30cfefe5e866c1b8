"""A module in four stages, and gates that hold its stages back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch_modules import Chain, Gates

import splitload.torch
from splitload.torch.sources import Arrival, Mapped

WAIT_S = 20


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Chain, Path]:
    """A module of four stages, and its bundle."""
    module = Chain().eval()
    splitload.torch.save(module, torch.ones(1, 8), tmp_path / "chain.splitload", num_stages=4)
    return module, tmp_path / "chain.splitload"


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gates]:
    made = Gates()
    real = Mapped._map

    def held(self: Mapped, index: int) -> Arrival:
        if index in made.events and not made.events[index].wait(WAIT_S):
            raise TimeoutError(f"stage {index} was never let through")
        return real(self, index)

    monkeypatch.setattr(Mapped, "_map", held)
    yield made
    made.open()
