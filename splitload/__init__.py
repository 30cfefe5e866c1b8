"""splitload: load a neural network in parallel stages, and answer while it loads."""

from typing import TYPE_CHECKING, Any

from splitload.warmup import warm_up

warm_up()  # beside the imports that follow

from splitload.errors import SplitloadError  # noqa: E402
from splitload.loader import ParallelLoader  # noqa: E402

if TYPE_CHECKING:
    from splitload.commands.from_torch import from_torch

__version__ = "0.1.0"
__all__ = ["ParallelLoader", "SplitloadError", "__version__", "from_torch"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for."""
    import importlib

    if name == "from_torch":
        return importlib.import_module("splitload.commands.from_torch").from_torch
    if name == "torch":
        return importlib.import_module("splitload.torch")
    raise AttributeError(f"module 'splitload' has no attribute '{name}'")
