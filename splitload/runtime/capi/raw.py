"""C functions, called by what `ctypes` is made of: `ctypes` takes 3 to 4 ms to import, and some calls come before."""

from __future__ import annotations

from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_PYTHONAPI, CFuncPtr, _SimpleCData, addressof, dlopen, dlsym

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PROCESS = dlopen(None, 0)  # type: ignore[arg-type] # Python's functions and the system's


class Address(_SimpleCData):  # type: ignore[type-arg]
    """A pointer; what a function returns as one is an int, or None."""

    _type_ = "P"


class Int(_SimpleCData):  # type: ignore[type-arg]
    """An `int`, or an enumeration."""

    _type_ = "i"


class Size(_SimpleCData):  # type: ignore[type-arg]
    """A `size_t`, which is a `long` where `_ctypes` has `dlopen`."""

    _type_ = "L"


class Text(_SimpleCData):  # type: ignore[type-arg]
    """A pointer to bytes that a null ends."""

    _type_ = "z"


def function(address: int, returns: Any, *takes: Any, keeps_lock: bool = False) -> Any:
    """Return a function that can be called.

    Args:
        address: Where it lies.
        returns: Class of what it returns, or None.
        takes: Classes of its arguments.
        keeps_lock: Whether the call keeps Python's lock: to ask for it again takes longer than a short call does.
    """
    flags = FUNCFLAG_CDECL | (FUNCFLAG_PYTHONAPI if keeps_lock else 0)
    return type("Function", (CFuncPtr,), {"_flags_": flags, "_restype_": returns, "_argtypes_": takes})(address)


def place(name: str, library: int = _PROCESS) -> int:
    """Return where a function lies.

    Args:
        name: Its name.
        library: A handle of what has it; the process and what it began with if it is left out.

    Raises:
        OSError: If there is none of that name.
    """
    return dlsym(library, name)


def pointers(address: int, count: int) -> Any:
    """Return the pointers that lie at an address, each an int or None."""
    return (Address * count).from_address(address)


def made(create: Any, *arguments: Any) -> int | None:
    """Return the pointer that a function writes to the address that is its last argument; None where it writes none."""
    pointer = Address()
    create(*arguments, addressof(pointer))
    address: int | None = pointer.value
    return address
