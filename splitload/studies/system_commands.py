"""Commands of the system by which devices are emulated."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

from splitload.base.errors import StageError

Run = Callable[[Sequence[str]], str]


def run(words: Sequence[str], what: str = "links", package: str = "iproute2") -> str:
    """Run a command of the system and return what it prints.

    Args:
        words: The command.
        what: What it emulates, for messages.
        package: What has the command.

    Raises:
        StageError: If it fails.
    """
    try:
        return subprocess.run(words, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    except OSError as error:
        raise StageError(
            f"cannot emulate {what}: '{words[0]}' cannot be run ({error.strerror}); install {package}"
        ) from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
        raise StageError(f"cannot emulate {what}: '{' '.join(words)}' says: {said}") from error
