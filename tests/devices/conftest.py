"""What tests of devices share."""

from __future__ import annotations

from pathlib import Path

import pytest
from device_graphs import make_graph

from splitload.plan.graph import ModelGraph


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelGraph]:
    folder = tmp_path_factory.mktemp("graphs")
    return {kind: make_graph(folder, kind) for kind in ("native", "portable")}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def host_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("host")
