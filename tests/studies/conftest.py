"""A checkout to compare with, for the studies that do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose environment is this one."""
    interpreter = tmp_path / "checkout" / ".venv" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    interpreter.chmod(0o755)
    return tmp_path / "checkout"
