"""`ParallelLoader` keeps the contract of all clients of the ordered loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading_contract import LoadingContract, Model, Open, Stages
from runtime_models import feeds, loader_with

from splitload import ParallelLoader

pytestmark = pytest.mark.usefixtures("engine")


class Chain(Model):
    def __init__(self, owner: ParallelLoader, expected: list[Any]) -> None:
        self.owner, self._expected = owner, expected

    def use(self) -> None:
        for got, same in zip(self.owner.run(None, feeds()), self._expected, strict=True):
            np.testing.assert_array_equal(got, same)

    def wait(self, timeout: float) -> bool:
        return bool(self.owner.wait("loaded", timeout))

    def close(self) -> None:
        self.owner.close()


class TestParallelLoader(LoadingContract):
    @pytest.fixture
    def load(self, chain_bundle: Path) -> Open:
        with ParallelLoader(chain_bundle, upgrade=False) as model:
            expected = model.run(None, feeds())

        def load(pool: Any, stages: Stages, threads: int) -> Chain:
            def opened(open_session: Any, graph: Path, **options: Any) -> Any:
                stages(int(Path(graph).stem.split("-")[1]))
                return open_session(graph, **options)

            loader = loader_with(pool=pool, open_session=opened)
            return Chain(loader(chain_bundle, threads=threads, upgrade=False), expected)

        return load
