"""splitload: load a neural network in parallel stages, and answer while it loads."""

import os

# onnxruntime 1.29 and later look their maker up and write below the user's cache folder when they are imported. This
# stops it, in child processes too, unless the user has decided otherwise; nothing of splitload is imported before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from splitload.base.interrupts import begin, is_command

if is_command():  # before all that takes time
    begin()

TYPE_CHECKING = False  # importing `typing` takes longer than all of this
if TYPE_CHECKING:
    from typing import Any

    from splitload.base.errors import LibraryWarning, PortableWarning, SplitloadError
    from splitload.bundle.delivery import install
    from splitload.deploy.collaborator import Collaborator
    from splitload.planner.from_torch import from_torch
    from splitload.runtime.capi.tensor import Tensor
    from splitload.runtime.loader import ParallelLoader
    from splitload.runtime.shim import InferenceSession, IOBinding

__version__ = "0.1.0"
__all__ = [
    "Collaborator", "IOBinding", "InferenceSession", "LibraryWarning", "ParallelLoader", "PortableWarning",
    "SplitloadError", "Tensor", "__version__", "from_torch", "install",
]  # fmt: skip

_PLACES = {
    "Collaborator": "deploy.collaborator",
    "IOBinding": "runtime.shim",
    "InferenceSession": "runtime.shim",
    "LibraryWarning": "base.errors",
    "ParallelLoader": "runtime.loader",
    "PortableWarning": "base.errors",
    "SplitloadError": "base.errors",
    "Tensor": "runtime.capi.tensor",
    "from_torch": "planner.from_torch",
    "install": "bundle.delivery",
}


def __getattr__(name: str) -> "Any":
    """Import what is asked for, and have onnxruntime begin beside the imports of what loads."""
    if name == "torch":
        import importlib

        return importlib.import_module("splitload.torch")
    if name not in _PLACES:
        raise AttributeError(f"module 'splitload' has no attribute '{name}'")
    if name == "ParallelLoader":
        from splitload.runtime.warmup import warm_up

        warm_up()
    import gc

    collects = gc.isenabled()
    gc.disable()  # nothing that is imported is garbage, and to look for some takes a tenth of the time
    try:
        module = __import__(f"splitload.{_PLACES[name]}", fromlist=[name])  # importlib is a module to import
        found = globals()[name] = getattr(module, name)
    finally:
        if collects:
            gc.enable()
    return found
