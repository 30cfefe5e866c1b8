"""The runtime's environment, begun before all imports that it can do without: every first answer waits for it.

`ctypes`, by which the library is called later, takes 3 to 4 ms to import, and opens a library with Python's lock held.
"""

from __future__ import annotations

import _struct  # noqa: F401 - `ctypes` imports it, and nothing of the kind is opened beside the library
import _thread
import os
import sys

from splitload.runtime.capi.find import NoLibraryError
from splitload.runtime.capi.pages import widen_heap
from splitload.runtime.capi.table import API_VERSION, FUNCTIONS
from splitload.runtime.forks import make_beside
from splitload.runtime.settings import ENVIRONMENT

_IS_POSIX = os.name == "posix"  # Windows opens libraries otherwise
if _IS_POSIX:
    from splitload.runtime.capi.raw import Address, Int, Text, function, made, place, pointers


class _Begun:
    """An environment that a thread makes.

    Attributes:
        address: Where it lies; None until it is made, and where it could not be.
        done: A lock that is free once the thread has tried.
    """

    def __init__(self) -> None:
        self.address: int | None = None
        self.done = _thread.allocate_lock()
        self.done.acquire()


_begun: dict[str, _Begun] = {}


def begin(path: str) -> None:
    """Open a library and make its environment on a thread beside this one, and then what all its sessions share.

    Whoever needs it will meet what goes wrong. No interrupt ends the wait for that thread, so it opens a file and
    nothing that may hang; all else is opened here.

    Args:
        path: Its file.
    """
    if path in _begun:
        return
    if not (_IS_POSIX and os.path.isfile(path)):
        from splitload.runtime.capi.library import library, set_up

        try:
            library(path)
        except NoLibraryError:
            return
        make_beside(lambda: set_up(path))
        return
    name, open_library = os.fsencode(path), function(place("dlopen"), Address, Text, Int)
    try:
        sys.audit("ctypes.dlopen", path)  # as `ctypes` does
    except Exception:
        return
    begun = _Begun()

    def work() -> None:
        try:
            widen_heap()
            if handle := open_library(name, os.RTLD_NOW):
                begun.address = _environment(handle)
        except Exception:  # noqa: S110 - it is another library, or who audits calls refuses one
            pass
        finally:
            begun.done.release()
        if begun.address is None:
            return
        from splitload.runtime.capi.library import set_up  # which somebody imports by now

        set_up(path)

    try:
        _begun[path] = begun
        if not make_beside(work):
            begun.done.release()
    except BaseException:  # an interrupt: the thread may never come to work
        _begun.pop(path, None)
        raise


def environment(path: str) -> int | None:
    """Return the address of the environment that was begun for a library, once it is made; None where there is none."""
    begun = _begun.get(path)
    if begun is None:
        return None
    with begun.done:
        return begun.address


def _environment(handle: int) -> int | None:
    """Return the address of an environment, or None where the library makes none.

    Raises:
        OSError: If the library is another one.
    """
    base = function(place("OrtGetApiBase", handle), Address, keeps_lock=True)()
    table = function(pointers(base, 1)[0], Address, Int, keeps_lock=True)(API_VERSION)
    if not table:
        return None
    index = FUNCTIONS.index("CreateEnv")
    create = function(pointers(table, index + 1)[index], Address, Int, Text, Address)
    return made(create, *ENVIRONMENT)
