"""splitload: load a neural network in parallel stages, and answer while it loads."""

from splitload.errors import SplitloadError
from splitload.loader import ParallelLoader

__version__ = "0.1.0"
__all__ = ["ParallelLoader", "SplitloadError", "__version__"]
