"""What is needed beside the standard library and onnxruntime, and what to say where it is missing."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

from splitload.base.errors import MissingPackageError

_PACKAGES = {  # by the name that is imported
    "dask": "distributed",
    "distributed": "distributed",
    "flatbuffers": "flatbuffers",
    "google": "protobuf",
    "gymnasium": "gymnasium",
    "httpx": "httpx",
    "joblib": "joblib",
    "numpy": "numpy",
    "onnx": "onnx",
    "rich": "rich",
}
_EXTRAS = {  # of pyproject.toml; what is not here is the desk's
    "distributed": "crowd",
    "mfusepy": "dev",
    "starlette": "device",
    "uvicorn": "device",
    "zeroconf": "discovery",
}


def install(extra: str, *, before: str = "", after: str = "") -> str:
    """Return the command that installs what an extra of splitload names, which no package index has: docs/install.md.

    Args:
        extra: Its name in pyproject.toml.
        before: What is to be installed before it.
        after: What after it.
    """
    commands = [f"pip install {each}" for each in (before, f"'.[{extra}]'", after) if each]
    return f"{' && '.join(commands)} (in a checkout of splitload)"


def has(name: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Name the package that `what` misses, and how to install it, where one cannot be imported.

    Raises:
        MissingPackageError: In place of Python's own error.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = _PACKAGES.get((error.name or "").partition(".")[0])
        if package is None or isinstance(error, MissingPackageError):
            raise
        raise missing(what, package) from error


def need(what: str, *packages: str) -> None:
    """Make sure that packages can be imported, without importing them.

    Raises:
        MissingPackageError: If one cannot be: that `what` needs it, and how to install it.
    """
    for package in packages:
        if not has(package):
            raise missing(what, package)


def missing(what: str, package: str) -> MissingPackageError:
    """Return the error that says what needs a package, and how to install it."""
    cure = "pip install numpy" if package == "numpy" else install(_EXTRAS.get(package, "desk"))
    return MissingPackageError(f"{what} needs the package '{package}', which is not installed: {cure}")
