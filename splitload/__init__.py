"""splitload: load a neural network in parallel stages, and answer while it loads."""

import os

# onnxruntime 1.29 and later look their maker up and write below the user's cache folder when they are imported. This
# stops it, in child processes too, unless the user has decided otherwise; nothing of splitload is imported before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from splitload.base.interrupts import begin, is_command

if is_command():  # before all that takes time
    begin()

from typing import TYPE_CHECKING, Any

from splitload.runtime.warmup import warm_up

warm_up()  # beside the imports that follow

from splitload.base.errors import PortableWarning, SplitloadError  # noqa: E402
from splitload.runtime.loader import ParallelLoader  # noqa: E402

if TYPE_CHECKING:
    from splitload.bundle.delivery import install
    from splitload.planner.from_torch import from_torch
    from splitload.runtime.shim import InferenceSession, IOBinding

__version__ = "0.1.0"
__all__ = [
    "IOBinding", "InferenceSession", "ParallelLoader", "PortableWarning", "SplitloadError", "__version__", "from_torch",
    "install",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what most programs do not need, or what needs onnxruntime or torch, when it is asked for."""
    import importlib

    if name in ("InferenceSession", "IOBinding"):
        return getattr(importlib.import_module("splitload.runtime.shim"), name)
    if name == "install":
        return importlib.import_module("splitload.bundle.delivery").install
    if name == "from_torch":
        return importlib.import_module("splitload.planner.from_torch").from_torch
    if name == "torch":
        return importlib.import_module("splitload.torch")
    raise AttributeError(f"module 'splitload' has no attribute '{name}'")
