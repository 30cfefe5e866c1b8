"""A crowd of small devices that run the stages of one bundle as a streaming pipeline, on dask.distributed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitload.crowd.crowd import Crowd
    from splitload.crowd.local import LocalCrowd
    from splitload.crowd.mechanisms import Mechanisms

__all__ = ["Crowd", "LocalCrowd", "Mechanisms"]

_MODULES = {"Crowd": "crowd", "LocalCrowd": "local", "Mechanisms": "mechanisms"}


def __getattr__(name: str) -> Any:
    """Import what is asked for: a worker, which has little memory, imports this package too and needs none of it."""
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    import importlib

    from splitload.base.packages import named

    with named(f"splitload.crowd.{name}"):
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
