"""Cold measurements: files are evicted before each process, and profiles of both kinds are kept apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitload.base.errors import UsageError
from splitload.devices import open_device
from splitload.devices.host import HostDevice
from splitload.measure import pagecache, stages
from splitload.measure.fresh import run_job
from splitload.measure.stage_jobs import StageFile, TryScheme
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


class Engine:
    """Stands in for the runtime: keeps the names of what it opens."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def open(self, path: str, **_: Any) -> None:
        self.opened.append(Path(path).name)


@pytest.mark.skipif(not hasattr(pagecache.os, "posix_fadvise"), reason="files cannot be evicted here")
def test_what_is_cold_stays_so_until_it_is_measured_and_is_read_ahead_then(tmp_path: Path) -> None:
    (tmp_path / "s.ort").write_bytes(bytes(1 << 20))
    stage = StageFile((0, 1), "s.ort", (), (), reading=(4096, 1 << 20))
    job = TryScheme((), (stage,), mapped=True, prefetch=False, prepack=False)
    engine: Any = Engine()
    stages._start(engine, tmp_path, stage)
    assert stages._fetching(job, tmp_path) is None
    pagecache.evict([tmp_path / "s.ort"])
    stages._start(engine, tmp_path, stage)
    assert engine.opened == ["s.ort", "tiny.onnx"]
    assert pagecache.resident_bytes([tmp_path / "s.ort"]) < 1 << 20, "only looked at"
    pagecache.evict([tmp_path / "s.ort"])
    fetching = stages._fetching(job, tmp_path)
    assert fetching is not None
    fetching.join()
    assert pagecache.resident_bytes([tmp_path / "s.ort"]) == 1 << 20


def test_what_computes_evicts_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--page-cache cold is for devices that measure, and on 's20' times are"):
        open_device("s20", tmp_path, page_cache="cold")
