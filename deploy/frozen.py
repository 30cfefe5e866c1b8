"""The frozen stages of a bundle, on their way before the samples are read: both take time, on different threads."""

from __future__ import annotations

from pathlib import Path

from splitload.runtime.loader import ParallelLoader


class FrozenStages:
    """Loads the frozen stages as often as they are needed, always by the same engine; the first time at once.

    Args:
        bundle: The bundle's folder.
        threads: Loading threads, see `ParallelLoader`.
    """

    def __init__(self, bundle: Path, threads: int | None = None) -> None:
        self._bundle, self._threads = bundle, threads
        self._begun: ParallelLoader | None = ParallelLoader(bundle, threads=threads, frozen_only=True, upgrade=False)
        self._engine = self._begun.engine  # training imports the Python module, which "auto" would take from then on

    def open(self) -> ParallelLoader:
        """Return them, on their way; whoever takes them closes them.

        Raises:
            BundleError: If the bundle is damaged.
        """
        begun, self._begun = self._begun, None
        return begun or ParallelLoader(
            self._bundle, threads=self._threads, frozen_only=True, upgrade=False, engine=self._engine
        )

    def close(self) -> None:
        """Let go of what nobody has taken."""
        if self._begun is not None:
            self._begun.close()
