"""How every child process starts: it runs this very splitload, and nothing that lies in the current folder.

`python -m` and `python -c` put the current folder first on the import path, where a file named like a standard module
would be run in its place. A child takes that entry away before it imports anything; what the user's environment adds
(PYTHONPATH, site packages) stays. splitload itself is loaded from the file of the parent, however the parent found it.
What users start as `python -m splitload` is theirs: Python has searched the current folder by then.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "__init__.py"  # which a program that is run by its path is told of
_SAFE_PATH = "PYTHONSAFEPATH"
_START = """\
import sys
if not sys.flags.safe_path:
    del sys.path[0]
from importlib import import_module, util
spec = util.spec_from_file_location("splitload", sys.argv[1])
sys.modules["splitload"] = package = util.module_from_spec(spec)
spec.loader.exec_module(package)
name = sys.argv[2]
del sys.argv[1:3]
if name.startswith("splitload."):
    sys.exit(import_module(name).main())
import_module("runpy").run_module(name, run_name="__main__", alter_sys=True)
"""


def interpreter() -> Path:
    """Return the Python that runs this."""
    return Path(sys.executable)


def python(program: str | Path, *words: str) -> list[str]:
    """Return the command line of a child process; nothing else in splitload builds one that starts Python.

    Args:
        program: A module of splitload, whose `main` is called and returns the exit code; another package to run as
            `python -m` does, "pip" say; or a file to run by its path, in a folder that is ours alone, as that folder
            comes first on the import path.
        words: Its arguments.
    """
    if isinstance(program, Path):
        return [str(interpreter()), str(program), *words]
    return [str(interpreter()), "-c", _START, str(PACKAGE), program, *words]


@contextlib.contextmanager
def isolated_workers() -> Iterator[None]:
    """Have processes that libraries start meanwhile (joblib's workers) search no current folder either."""
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before
