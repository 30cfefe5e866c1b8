"""Real processes of a crowd, as the command line starts them, and what they say once they stand ready."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

WAIT_S = 60


@contextlib.contextmanager
def started(cache: Path, *words: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield a process of `splitload crowd` and the address it listens at; at the end it is killed, if need be."""
    environment = {**os.environ, "SPLITLOAD_CACHE": str(cache), "TMPDIR": str(cache)}
    command = [sys.executable, "-m", "splitload", "crowd", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"listens at (t\w+://[\w.:]+\d)", line)
        assert found is not None, line
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()
