"""A device on this machine: a process of `splitload serve`, which can be killed and started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from pathlib import Path
from urllib.parse import urlsplit

from splitload.base.errors import StageError
from splitload.measure.process import python

LISTENS = re.compile(r"--device '(\S+)'")  # the line that says where a service is reached
_END_S = 20.0


class ServedProcess:
    """A service that runs, at a port that is free.

    Args:
        cache: Its cache folder.
        words: Options of `splitload serve`.

    Attributes:
        url: Its address, with the code.
        child: Its process.
        cache: Its cache folder.

    Raises:
        StageError: If it ends at once.
    """

    def __init__(self, cache: Path, *words: str) -> None:
        self.cache = cache
        self._words = words
        self._start(0)

    @property
    def place(self) -> str:
        """Its address without the code."""
        return self.url.partition("/#")[0]

    @property
    def port(self) -> int:
        """Where it listens."""
        return urlsplit(self.url).port or 0

    def start(self) -> None:
        """Start it again at the same address, and wait until it listens.

        Raises:
            StageError: If it ends at once.
        """
        self._start(self.port)

    def kill(self) -> None:
        """End it at once, so that it can do nothing about it."""
        self.child.kill()
        self._ended()

    def close(self) -> None:
        """End it as a user does."""
        self.child.send_signal(signal.SIGINT)
        self._ended()

    def _start(self, port: int) -> None:
        environment = {**os.environ, "SPLITLOAD_CACHE": str(self.cache)}
        command = python("splitload.__main__", "serve", "--port", str(port), "--name", "board", *self._words)
        self.child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, encoding="utf-8")
        assert self.child.stderr is not None  # noqa: S101
        said = []
        for line in self.child.stderr:
            said.append(line)
            if found := LISTENS.search(line):
                self.url = found[1]
                break
        else:
            self.child.wait()
            self.child.stderr.close()
            raise StageError(f"the service does not start: {said[-1:]}")
        self._reader = threading.Thread(target=self.child.stderr.read, daemon=True)
        self._reader.start()

    def _ended(self) -> None:
        self.child.wait(_END_S)
        self._reader.join()
        assert self.child.stderr is not None  # noqa: S101
        self.child.stderr.close()
