"""Cold measurements: files are evicted before each process, and profiles of both kinds are kept apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitload.base.errors import UsageError
from splitload.devices import open_device
from splitload.devices.host import HostDevice
from splitload.measure import pagecache
from splitload.measure.fresh import run_job
from splitload.plan.graph import ModelGraph


@pytest.mark.skipif(not hasattr(pagecache.os, "posix_fadvise"), reason="files cannot be evicted here")
def test_cold_profiles_are_of_evicted_files(
    graphs: dict[str, ModelGraph], host_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evicted: list[Path] = []

    def run(*words: Any, cold: Any = (), **more: Any) -> dict[str, Any]:
        evicted.extend(cold)
        return run_job(*words, cold=cold, **more)

    graph = graphs["native"]
    warm = HostDevice(host_cache, repeats=1, run=run).profile(graph)
    assert (warm.environment["page_cache"], evicted) == ("warm", [])
    cold = HostDevice(host_cache, repeats=1, run=run, page_cache="cold").profile(graph)
    assert cold.environment["page_cache"] == "cold"
    assert {path.suffix for path in evicted} >= {".ort", ".npy"}
    assert HostDevice(host_cache, repeats=1).profile(graph) == warm


def test_what_computes_evicts_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--page-cache cold is for devices that measure, and on 's20' times are"):
        open_device("s20", tmp_path, page_cache="cold")
