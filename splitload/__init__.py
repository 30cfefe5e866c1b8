"""splitload: load a neural network in parallel stages, and answer while it loads."""

from splitload.warmup import warm_up

warm_up()  # beside the imports that follow

from splitload.errors import SplitloadError  # noqa: E402
from splitload.loader import ParallelLoader  # noqa: E402

__version__ = "0.1.0"
__all__ = ["ParallelLoader", "SplitloadError", "__version__"]
