"""What was measured before all was: samples of a measurement that an interrupt or a vanished device cut short.

The next attempt takes them, in their order, in place of new ones. A line each, with a hash of its own; what was not
written whole is left out.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from splitload.base.errors import OutputError

KEPT_S = 86400.0  # after which samples are of another day, and of another state of the device


class Journal:
    """Samples by what was asked, in a file.

    Args:
        path: The file; it need not exist.

    Attributes:
        taken: How many samples were taken from it.
    """

    def __init__(self, path: Path) -> None:
        self.taken = 0
        self._path = path
        self._left: defaultdict[str, deque[Any]] = defaultdict(deque)
        try:
            if abs(time.time() - path.stat().st_mtime) <= KEPT_S:  # a clock may have been set back
                for line in path.read_bytes().splitlines():
                    self._read(line)
            else:
                path.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise OutputError(f"cannot read the samples in '{path}': {error.strerror or error}") from error

    def answer(self, asked: tuple[Any, ...], measure: Callable[[], Any]) -> Any:
        """Return the answer to what is asked: one that was kept, or a new one, which is kept then.

        Args:
            asked: JSON values that tell it from all else that is asked.
            measure: Returns the answer, JSON values too.

        Raises:
            OutputError: If it cannot be kept.
        """
        key = json.dumps(asked)
        if self._left[key]:
            self.taken += 1
            return self._left[key].popleft()
        answer = measure()
        text = json.dumps([key, answer])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="ascii") as file:
                file.write(f"\n{_seal(text)} {text}")  # a line that was torn ends here
        except OSError as error:
            raise OutputError(f"cannot keep samples in '{self._path}': {error.strerror or error}") from error
        return answer

    def forget(self) -> None:
        """Remove the file: what the samples were for is done."""
        self._path.unlink(missing_ok=True)

    def _read(self, line: bytes) -> None:
        seal, _, text = line.decode("ascii", errors="replace").partition(" ")
        if seal == _seal(text):
            key, answer = json.loads(text)
            self._left[key].append(answer)


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
