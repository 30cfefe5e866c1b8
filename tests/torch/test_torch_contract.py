"""`splitload.torch.load` keeps the contract of all clients of the ordered loading."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from loading_contract import WAIT_S, HandPool, LoadingContract, Model, Open, Stages
from torch import nn
from torch_modules import Chain, on_meta

import splitload.torch
from splitload.base.errors import StageError
from splitload.torch import loading
from splitload.torch.loading import TorchParts, load_with
from splitload.torch.sources import Arrival, Mapped


class Watching(Mapped):
    """Maps stages, and says so before."""

    def __init__(self, stages: Stages, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._said = stages

    def lane(self) -> Callable[[int], Arrival]:
        def load(index: int) -> Arrival:
            self._said(index)
            return self._map(index)

        return load


class Loaded(Model):
    def __init__(self, module: nn.Module, same: nn.Module) -> None:
        self.module, self._same = module, same
        self.owner = loading._loadings[module]

    def use(self) -> None:
        assert torch.equal(self.module(torch.ones(1, 8)), self._same(torch.ones(1, 8)))

    def wait(self, timeout: float) -> bool:
        return splitload.torch.wait(self.module, timeout)

    def close(self) -> None:
        self.owner._let_go()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    module = Chain().eval()
    splitload.torch.save(module, torch.ones(1, 8), tmp_path / "chain.splitload", num_stages=4)
    return module, tmp_path / "chain.splitload"


class TestTorch(LoadingContract):
    @pytest.fixture
    def load(self, saved: tuple[nn.Module, Path]) -> Open:
        same, bundle = saved

        def load(pool: Any, stages: Stages, threads: int) -> Loaded:
            def mapped(*given: Any, **named: Any) -> Watching:
                return Watching(stages, *given, **named)

            parts = TorchParts(pool=pool, mapped=mapped)
            return Loaded(load_with(parts, on_meta(Chain), bundle, threads=threads), same)

        return load


@pytest.mark.parametrize("number", [0, 1])
def test_a_module_whose_load_was_interrupted_says_so(saved: tuple[nn.Module, Path], number: int) -> None:
    module = on_meta(Chain)
    with pytest.raises(KeyboardInterrupt):
        load_with(TorchParts(pool=HandPool(interrupts_at=number)), module, saved[1], threads=2)
    with pytest.raises(StageError, match="closed"):
        module(torch.ones(1, 8))
    with pytest.raises(StageError, match="closed"):
        splitload.torch.wait(module)


def test_files_are_fetched_where_they_are_not_cached(saved: tuple[nn.Module, Path]) -> None:
    fetched: list[str] = []
    done = threading.Event()

    def fetch(files: Sequence[tuple[Path, Any]], stopped: Callable[[], bool]) -> None:
        fetched.extend(path.name for path, _ in files)
        done.set()

    module, pool = on_meta(Chain), HandPool()
    load_with(TorchParts(pool=pool, is_cached=lambda *_: False, fetch=fetch), module, saved[1])
    pool.run_all()
    assert splitload.torch.wait(module, 0)
    assert done.wait(WAIT_S)
    assert len(fetched) == 4
