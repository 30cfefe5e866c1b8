"""Sizes in memory as words say them, and how much of a model may be there at a time."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Residency = Literal["stage"] | int | None

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
}  # fmt: skip
_DIGITS = frozenset("0123456789.")


def read_bytes(word: str) -> int:
    """Return the whole bytes that a word says: "48MB" (10⁶ each), "48MiB" (2²⁰ each), "1.5GB" or "48000000".

    Raises:
        ValueError: If it says none, or less than one.
    """
    text = word.strip().lower()
    unit = text.lstrip("0123456789.").strip()
    digits = text[: len(text) - len(unit)].strip()
    if unit in _UNITS and digits and _DIGITS.issuperset(digits) and digits.count(".") <= 1 and digits != ".":
        whole, _, part = digits.partition(".")
        size_bytes: int = int((whole or "0") + part) * _UNITS[unit] // 10 ** len(part)  # exact, where a float is not
        if 0 < size_bytes < 1 << 63:
            return size_bytes
    raise ValueError(f"it must be a size such as 48MB, 48MiB or 48000000, not '{word:.40}'")


def read_residency(word: str) -> Residency:
    """Return how much of a model may be in memory at a time: "stage", a ceiling in bytes, or None for "all".

    Raises:
        ValueError: If a word says neither.
    """
    if word in ("all", "stage"):
        return "stage" if word == "stage" else None
    try:
        return read_bytes(word)
    except ValueError as error:
        raise ValueError(f"it must be all, stage or a size such as 48MB, not '{word:.40}'") from error


def megabytes(size_bytes: float) -> str:
    """Return a size as people read it, for example "28.3 MB"."""
    return f"{size_bytes / 1e6:.1f} MB"
