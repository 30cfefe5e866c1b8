"""Real services of devices, in processes of their own, for tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitload.measure.process import python


class Served:
    """A service that runs.

    Attributes:
        url: Its address with the code.
        child: Its process.
    """

    def __init__(self, cache: Path, *words: str) -> None:
        environment = {**os.environ, "SPLITLOAD_CACHE": str(cache)}
        command = python("splitload.__main__", "serve", "--port", "0", "--name", "board", *words)
        self.child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        assert self.child.stderr is not None
        said = []
        for line in self.child.stderr:
            said.append(line)
            if found := re.search(r"--device '(\S+)'", line):
                self.url = found[1]
                break
        else:
            raise AssertionError("".join(said))
        self._reader = threading.Thread(target=self.child.stderr.read, daemon=True)
        self._reader.start()

    @property
    def place(self) -> str:
        """Its address without the code."""
        return self.url.partition("/#")[0]

    def kill(self) -> None:
        """End it as a power cut does."""
        self.child.kill()
        self._ended()

    def close(self) -> None:
        """End it as a user does."""
        self.child.send_signal(signal.SIGINT)
        self._ended()

    def _ended(self) -> None:
        self.child.wait(20)
        self._reader.join()
        assert self.child.stderr is not None
        self.child.stderr.close()


@contextmanager
def served(cache: Path, *words: str) -> Iterator[Served]:
    """Yield a service that runs, and end it."""
    made = Served(cache, *words)
    try:
        yield made
    finally:
        if made.child.poll() is None:
            made.kill()
