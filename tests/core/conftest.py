"""Models and bundles that the tests of the runtime share; made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
import runtime_models

from splitload.bench import pagecache
from splitload.errors import StageError


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
