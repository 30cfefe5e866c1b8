"""The command line as fixtures: with its exit code and streams, or what it says where all is well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import Run

from splitload.cli import main


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cli(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process, in an empty folder; return exit code, stdout and stderr."""
    monkeypatch.setenv("SPLITLOAD_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command that works, in an empty folder; return what it says."""
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def words(*given: str | Path) -> str:
        assert main([str(word) for word in given]) == 0
        return capsys.readouterr().out

    return words
