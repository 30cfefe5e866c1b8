"""JSON files that tell when they were damaged: the last entry of the object is the SHA-256 of all bytes before it.

Such a file is plain JSON to everybody else. Who changes one by hand takes that entry out.
"""

from __future__ import annotations

KEY = "sha256"
_BEFORE = b',\n "sha256": "'
_AFTER = b'"\n}\n'


def seal(text: str) -> str:
    """Return a JSON object's text with its hash added as the last entry.

    Args:
        text: A JSON object that is not empty and has no key "sha256".
    """
    body = text.rstrip().removesuffix("}").rstrip().encode()
    return (body + _BEFORE + _digest(body) + _AFTER).decode()


def is_intact(data: bytes) -> bool:
    """Return whether the bytes of a sealed file are those that were written."""
    body, before, rest = data.rpartition(_BEFORE)
    return bool(before) and rest == _digest(body) + _AFTER


def _digest(body: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(body).hexdigest().encode()
