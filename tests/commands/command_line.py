"""Runs the command line in this process or a fresh one, and reads what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAIT_S = 120


Run = Callable[..., tuple[int, str, str]]


def process(cache: Path, folder: Path, *words: str | Path, code: str | None = None) -> Any:
    """Run a command line in a process of its own; `code` stands in for `-m splitload`."""
    start = ["-m", "splitload"] if code is None else ["-c", code]
    environment = {**os.environ, "SPLITLOAD_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, *start, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=WAIT_S,
    )  # fmt: skip


def json_of(result: tuple[int, str, str]) -> Any:
    code, out, err = result
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


def one_line(result: tuple[int, str, str], code: int) -> str:
    got, out, err = result
    assert (got, out) == (code, ""), err
    assert err.startswith("splitload: ")
    assert err.count("\n") == 1
    assert "this should not happen" not in err
    return err
