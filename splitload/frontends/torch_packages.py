"""The packages that torch models need: named where they are missing, kept quiet while they work."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator

from splitload.base.errors import MissingPackageError
from splitload.base.packages import install

INSTALL = install("torch", before="torch==2.13.0", after="--no-deps torchvision==0.28.0 pillow")

_ONE_AT_A_TIME = threading.RLock()


def require(*packages: str) -> None:
    """Import `packages`, so that what is missing is named before any work starts.

    Raises:
        MissingPackageError: One of them cannot be imported; the message holds the commands that install it.
    """
    for package in packages:
        try:
            with quiet():
                if package in ("torchvision", "transformers"):
                    declare_torchvision_ops()
                importlib.import_module(package)
        except (ImportError, OSError) as e:
            raise MissingPackageError(f"this model needs the package '{package}' ({e}). Install it: {INSTALL}") from e


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what torch and its exporter warn and print from the user; errors pass.

    One thread at a time: streams and warnings are the process's, and so is the state of torch's exporter.
    """
    sink = io.StringIO()
    with (
        _ONE_AT_A_TIME,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
    ):
        warnings.simplefilter("ignore")
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def declare_torchvision_ops() -> None:
    """Make `import torchvision` work beside a CPU-only torch, where its compiled operators do not load.

    Classification models use none of these operators; torchvision only wants them to exist. Does nothing where
    torchvision imports as it is, or is not installed. Call it before transformers too, which imports torchvision.

    Raises:
        MissingPackageError: torchvision does not fit the installed torch.
    """
    try:
        import torchvision
    except ImportError:
        return
    except RuntimeError as e:
        if "torchvision::" not in str(e):
            raise
    else:
        return
    import torch

    try:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
    except RuntimeError as e:
        raise MissingPackageError(f"torchvision does not fit the installed torch ({e}). Install: {INSTALL}") from e
