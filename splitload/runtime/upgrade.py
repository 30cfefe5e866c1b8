"""Makes stages anew in the background after the first answer, with weights rearranged for speed, and swaps them in."""

from __future__ import annotations

from splitload.base.errors import StageError
from splitload.base.machine import return_memory
from splitload.bundle.manifest import StageEntry
from splitload.runtime.ordered import OrderedLoading
from splitload.runtime.pool import await_at_exit, dropping, started

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


class Upgrade:
    """The stages of one loading, made anew once.

    Attributes:
        done: Set when all are made, or the loading was given up.
        is_wanted: Whether there is anything to wait for.

    Args:
        loading: What holds the sessions.
        stages: Their entries, which say which ones it pays for.
        make: Makes a session on a stage, mostly at low priority, which the calling thread keeps.
        is_wanted: Whether it is to be done, where it pays for any stage.
    """

    def __init__(
        self,
        loading: OrderedLoading,
        stages: Sequence[StageEntry],
        make: Callable[[StageEntry], Any],
        *,
        is_wanted: bool,
    ) -> None:
        self.done = loading.latch()
        self.is_wanted = is_wanted and any(stage.upgrade for stage in stages)
        self._loading, self._stages, self._make = loading, stages, make
        self._is_begun = False

    def begin(self) -> None:
        """Begin, once, when all stages are loaded; a thread too many ends at once."""
        loading = self._loading
        if self.is_wanted and not self._is_begun and loading.all_loaded.is_set() and not loading.is_over():
            import threading  # not before the first answer

            work, ended = dropping(self._work)
            if started(threading.Thread(target=work, name="splitload-upgrade", daemon=True)):
                await_at_exit(ended)
            elif not self._is_begun:
                self.is_wanted = False

    def _work(self) -> None:
        """Replace sessions by such with prepacked weights; a stage that fails keeps the one it has."""
        try:
            with self._loading.inside():
                with self._loading.lock:
                    first, self._is_begun = not self._is_begun, True
                if first:
                    self._replace_all()
        except StageError:
            pass

    def _replace_all(self) -> None:
        import threading

        try:
            for index, stage in enumerate(self._stages):
                if self._loading.is_closed:
                    break
                if stage.upgrade:
                    # a thread for each: the priority it lowers for its work cannot be raised again
                    worker = threading.Thread(target=self._replace, args=(index, stage), daemon=True)
                    if started(worker):
                        worker.join()
            return_memory()
        finally:
            self.done.set()

    def _replace(self, index: int, stage: StageEntry) -> None:
        try:
            self._loading.replace(index, self._make(stage))
        except Exception:  # noqa: S110 - the stage answers as before
            pass
