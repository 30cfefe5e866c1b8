"""Staying in PyTorch: a module's tensors as a bundle, loaded stage by stage while the module already runs."""

from splitload.base.errors import MissingPackageError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingPackageError("splitload.torch needs the package 'torch'. Install it: pip install torch") from error

from splitload.torch.loading import load, wait
from splitload.torch.saving import save

__all__ = ["load", "save", "wait"]
