"""What tests do in a forked child of their own process; one that hangs is ended, and says where it was."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import traceback
from collections.abc import Callable

HANGS_S = 50


def does_in_child(work: Callable[[], object]) -> bool:
    """Return whether a forked child does something, and that raises nothing.

    Sessions that other tests have left in cycles are collected before: the runtime waits, when it frees one, for the
    threads of it, and those stay with the parent.

    Args:
        work: What is done.
    """
    gc.collect()
    child = os.fork()
    if not child:
        status = 1
        try:
            faulthandler.register(signal.SIGALRM, chain=True)  # a timer of it would wait for that of the parent's
            signal.alarm(HANGS_S)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
