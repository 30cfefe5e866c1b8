"""What runs a command in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitload.cli import main


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def words(*given: str | Path) -> str:
        assert main([str(word) for word in given]) == 0
        return capsys.readouterr().out

    return words
