"""What all tests share: models and bundles, made once; the modules beside this file can be imported by their names."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import runtime_models

from splitload.base.errors import StageError
from splitload.measure import pagecache, sampling

# A shell that starts this in the background has SIGINT ignored, and so would every process that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def without_pauses() -> Iterator[None]:
    """Start each process that is measured at once: no test compares how long two of them took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "PAUSE_S", 0.0)
        yield


@pytest.fixture
def measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure this host once for each figure, and try a cut once: for tests of what is done with what was measured."""
    from splitload.devices.host import HostDevice

    assert HostDevice.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(HostDevice.__init__.__kwdefaults__, "repeats", 1)
    monkeypatch.setattr("splitload.planner.trial.TRIAL_RUNS", 1)


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch, measured_once: None) -> None:
    """Measure the gain of a bundle once as well, not three times."""
    for module in ("gain", "train"):
        monkeypatch.setattr(f"splitload.planner.{module}.GAIN_RUNS", 1)


@pytest.fixture(scope="session")
def runtime_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runtime")


@pytest.fixture(scope="session")
def chain_model(runtime_folder: Path) -> Path:
    """The .onnx file of `runtime_models.chain`."""
    path = runtime_folder / "chain.onnx"
    onnx.save(runtime_models.chain(), path)
    return path


@pytest.fixture(scope="session")
def chain_bundle(chain_model: Path) -> Path:
    """A portable bundle of four stages; do not change it."""
    return runtime_models.bundle(chain_model, chain_model.with_suffix(".splitload"))


@pytest.fixture(scope="session")
def native_bundle(chain_model: Path) -> Path:
    """A bundle with a native and a portable variant of four stages each; do not change it."""
    return runtime_models.bundle(chain_model, chain_model.with_name("native.splitload"), native=True)


@pytest.fixture
def own_bundle(chain_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `chain_bundle` to damage."""
    return Path(shutil.copytree(chain_bundle, tmp_path / "own.splitload", copy_function=shutil.copyfile))


@pytest.fixture
def evictable(tmp_path: Path) -> Path:
    """A file of 2 MB on a file system that lets go of it."""
    try:
        pagecache.check()
        file = tmp_path / "file.bin"
        file.write_bytes(bytes(2_000_000))
        pagecache.evict([file])
    except StageError as error:
        pytest.skip(str(error))
    return file
