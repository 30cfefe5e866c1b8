"""One arena of working memory for all stages of cut models: what one stage has let go of, the next one takes.

With an arena of its own each stage would keep the memory of its largest moment for as long as it lives.

onnxruntime knows one such arena in a process, and sessions that do not ask for it (`session.use_env_allocators`) never
use it. A caller whose own sessions ask for it and who registers another keeps what was registered last, for the
sessions made afterwards; so it is registered only with the first stage of the first model that is cut.
"""

from __future__ import annotations

import contextlib
import os
import threading

from splitload.runtime.feeds import to_ort
from splitload.runtime.forks import making_session
from splitload.runtime.options import identity
from splitload.runtime.settings import EXACT, SHARES, SHRINKS
from splitload.runtime.stock import tiny_session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_lock = threading.Lock()
_is_there = False


def share_arena(ort: Any, options: Any) -> None:
    """Have a session take its working memory from the arena of all stages; make that arena the first time.

    Args:
        ort: The onnxruntime module.
        options: The session's `onnxruntime.SessionOptions`; they are changed, unless they want no arena.
    """
    global _is_there
    if not options.enable_cpu_mem_arena:
        return
    with _lock:
        if not _is_there:
            info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
            with making_session():
                ort.create_and_register_allocator(info, ort.OrtArenaCfg(EXACT))
            _is_there = True
    for entry in SHARES.items():
        options.add_session_config_entry(*entry)


def widen_arena(ort: Any, size_bytes: int, *, own_threads: bool) -> None:
    """Have the arena hold a free piece of memory: a tensor of so many bytes is made there, and let go of.

    Args:
        ort: The onnxruntime module.
        size_bytes: How large the piece is.
        own_threads: See `empty_arena`.
    """
    import numpy as np

    options = ort.SessionOptions()
    for entry in SHARES.items():
        options.add_session_config_entry(*entry)
    session = tiny_session(options, own_threads, identity(["n"]))
    shape = (size_bytes // 4, *session.get_inputs()[0].shape[1:])
    zeros = np.zeros([size if isinstance(size, int) else 1 for size in shape], np.float32)  # the system has one page
    session.run_with_ort_values(["y"], {"x": to_ort(ort, zeros)}, None)


def empty_arena(ort: Any, *, own_threads: bool) -> None:
    """Give back to the system what nobody uses of the arena, after a model was closed.

    Args:
        ort: The onnxruntime module.
        own_threads: Whether sessions have threads of their own, or the process has a pool that all must use.
    """
    if not _is_there:
        return
    import numpy as np

    with contextlib.suppress(Exception):  # then the next model takes it
        shrink = ort.RunOptions()
        for entry in SHRINKS.items():
            shrink.add_run_config_entry(*entry)
        options = ort.SessionOptions()
        for entry in SHARES.items():
            options.add_session_config_entry(*entry)
        tiny_session(options, own_threads).run(None, {"x": np.zeros(1, np.float32)}, shrink)


def _after_in_child() -> None:
    """Have a forked child make an arena of its own: a run may have held the lock of the parent's."""
    global _is_there, _lock
    _is_there, _lock = False, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)
