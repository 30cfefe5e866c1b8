"""The small bundle: built once, and a copy for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_bundle import build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")  # what builds a trainable bundle checks its gradients with torch
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("built")
    patch.setenv("SPLITLOAD_CACHE", str(folder / "cache"))
    made = build(folder)
    patch.undo()
    return made


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    copy = tmp_path / built.name
    return Path(shutil.copytree(built, copy, copy_function=shutil.copyfile))  # whose files may be written to
