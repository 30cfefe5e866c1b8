"""How long a thread has waited for something that is no processor: in a load of cold files, for storage (Linux)."""

from __future__ import annotations

import time

_SCHEDULED = "/proc/thread-self/schedstat"  # nanoseconds on a processor, and in line for one; how often
_NS = 1e-9


class Waits:
    """What the calling thread waits for, from now on.

    Time on a processor is none, and neither is time in line for one, which includes what a quota takes. The rest is
    what storage, locks and other threads take. Where the system does not tell, nothing counts as waiting.
    """

    def __init__(self) -> None:
        self._start = _now()

    def lap_s(self) -> float:
        """Return the seconds that it has waited since this was made or asked last."""
        before, self._start = self._start, _now()
        if before is None or self._start is None:
            return 0.0
        wall_s, busy_s = (now - then for now, then in zip(self._start, before, strict=True))
        return min(max(wall_s - busy_s, 0.0), wall_s)


def _now() -> tuple[float, float] | None:
    """Return the clock, and how long this thread was on a processor or in line for one; None where nothing tells."""
    try:
        with open(_SCHEDULED, encoding="ascii") as file:  # noqa: PTH123 - pathlib is slow to import
            in_line_ns = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return time.perf_counter(), time.thread_time() + in_line_ns * _NS
