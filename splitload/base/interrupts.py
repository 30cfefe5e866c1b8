"""A Ctrl-C in a process of a command ends it with 130 and at most one line, from the first import to the last breath.

Python tells of it with a `KeyboardInterrupt`. Nobody catches that before the command's `main` has begun or after it has
ended, and what is being imported may turn it into an `ImportError`. Nothing is under way in both places, so the process
ends at once there. Programs that import splitload keep their handler.
"""

from __future__ import annotations

import _thread
import os
import sys

TYPE_CHECKING = False  # importing `typing` takes longer than all of this
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

EXIT_CODE = 130
_SCRIPTS = ("splitload", "splitload.exe")
_MODULES = ("splitload", "splitload.deploy.personalize")  # with a command line, as `python -m` takes them
_taken = False


def is_command() -> bool:
    """Return whether this process is one of splitload's commands, seen from the first import of splitload."""
    program = (getattr(sys, "argv", None) or [""])[0]
    if program != "-m":  # which is what it is until Python has found the module
        return os.path.basename(program) in _SCRIPTS
    words = sys.orig_argv
    return any(words[place] == "-m" and words[place + 1] in _MODULES for place in range(1, len(words) - 1))


def begin() -> None:
    """Have a Ctrl-C end the process with one line from now on, if Python would have raised it."""
    import signal

    global _taken
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_early)
        _taken = True
        import atexit

        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # runs last; Python then drops other handlers


def work() -> None:
    """Have a Ctrl-C raise `KeyboardInterrupt` from now on: something is under way.

    One that comes while an object is freed would be printed and forgotten; it is raised again after that.
    """
    if _taken:
        import signal

        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = _raise_again


def finish() -> None:
    """Have a Ctrl-C end the process without a word from now on: all is said."""
    if _taken:
        import signal

        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_CODE))


def ending(main: Callable[[], int]) -> int:
    """Return the exit code of a command's `main`; a Ctrl-C that comes as it ends, or a second one, is no traceback."""
    try:
        try:
            return main()
        finally:
            finish()
    except KeyboardInterrupt:
        finish()
        return EXIT_CODE


def stands_for_interrupt(error: BaseException | None) -> bool:
    """Return whether an interrupt came first: code of others may turn it into any error, and go on from there."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def is_interrupt(error: BaseException | None) -> bool:
    """Return whether an error is an interrupt, or an `ImportError` that stands for one."""
    while isinstance(error, ImportError):
        error = error.__cause__ or error.__context__
    return isinstance(error, KeyboardInterrupt)


def _raise_again(unraisable: Any) -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _thread.start_new_thread(_thread.interrupt_main, ())  # from here it would be raised here, and forgotten too
    else:
        sys.__unraisablehook__(unraisable)


def _end_early(*_: object) -> None:
    try:
        if sys.__stderr__ is not None:  # else its number may be that of another file
            os.write(2, b"splitload: interrupted; nothing was written\n")
    except OSError:
        pass
    finally:
        os._exit(EXIT_CODE)
