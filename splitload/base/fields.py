"""Typed access to the fields of parsed JSON: whatever is missing, unknown or of another type is a `BundleError`."""

from __future__ import annotations

import sys

from splitload.base.errors import BundleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_HEX = frozenset("0123456789abcdef")


def is_count(value: Any) -> bool:
    """Return whether a JSON value is a whole number of at least 0, and of 63 bits at most."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def is_sha256(value: Any) -> bool:
    """Return whether a JSON value is a SHA-256 in hexadecimal."""
    return isinstance(value, str) and len(value) == 64 and _HEX.issuperset(value)


class Reader:
    """Typed access to one JSON object.

    Attributes:
        data: The object.
        where: What it is, for messages.
    """

    __slots__ = ("data", "where")

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise BundleError(f"{where} must be an object, it is {type(data).__name__}")
        self.data: dict[str, Any] = data
        self.where = where

    def only(self, *names: str) -> None:
        """Raise if there are other keys than these."""
        if unknown := set(self.data) - set(names):
            raise BundleError(f"{self.where} has unknown keys {sorted(unknown)}")

    def get(self, key: str) -> Any:
        """Return the value of a key that must be there."""
        if key not in self.data:
            raise BundleError(f"{self.where}.{key} is missing")
        return self.data[key]

    def text(self, key: str) -> str:
        """Return a string."""
        value = self.get(key)
        if not isinstance(value, str):
            raise BundleError(f"{self.where}.{key} must be a string, it is {value!r}")
        return value

    def optional_text(self, key: str) -> str | None:
        """Return a string or None."""
        return None if self.get(key) is None else self.text(key)

    def choice(self, key: str, *choices: str) -> Any:
        """Return one of some strings."""
        value = self.text(key)
        if value not in choices:
            raise BundleError(f"{self.where}.{key} must be one of {list(choices)}, it is {value!r}")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return true or false; `default` if there is one and the key is not there."""
        value = self.get(key) if default is None else self.data.get(key, default)
        if not isinstance(value, bool):
            raise BundleError(f"{self.where}.{key} must be true or false, it is {value!r}")
        return value

    def count(self, key: str, at_least: int = 0) -> int:
        """Return a whole number."""
        value = self.get(key)
        if not is_count(value) or value < at_least:
            raise BundleError(
                f"{self.where}.{key} must be a count of at least {at_least} and below 2**63, it is {value!r:.40}"
            )
        return int(value)

    def number(self, key: str) -> float:
        """Return a finite number."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise BundleError(f"{self.where}.{key} must be a finite number, it is {value!r:.40}")
        return float(value)

    def sha256(self, key: str) -> str:
        """Return a SHA-256 in hexadecimal."""
        value = self.text(key)
        if not is_sha256(value):
            raise BundleError(f"{self.where}.{key} must be a SHA-256 in hexadecimal, it is {value!r}")
        return value

    def sequence(self, key: str) -> list[Any]:
        """Return a list."""
        value = self.get(key)
        if not isinstance(value, list):
            raise BundleError(f"{self.where}.{key} must be a list, it is {value!r}")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """Return an object."""
        return self.child(key).data

    def child(self, key: str) -> Reader:
        """Return a reader of an object."""
        return Reader(self.get(key), f"{self.where}.{key}")

    def items(self, key: str, at_least: int = 0, at_most: int | None = None) -> Iterator[Reader]:
        """Yield a reader of each object in a list."""
        values = self.sequence(key)
        if len(values) < at_least or (at_most is not None and len(values) > at_most):
            raise BundleError(f"{self.where}.{key} has {len(values)} entries, allowed are {at_least} to {at_most}")
        return (Reader(value, f"{self.where}.{key}[{number}]") for number, value in enumerate(values))
