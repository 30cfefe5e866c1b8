"""Counts what is still to come of TLS records, whose heads are in the clear: type, version, and length in two bytes.

Source: RFC 8446, 5.1 and 5.2. OpenSSL keeps the begin of a record to itself, so that it does not tell.
"""

from __future__ import annotations

_HEAD_BYTES = 5
_BESIDE_BYTES = 17  # of a record: its authentication, and the type of what is in it


class RecordCount:
    """Follows the bytes of a connection from the begin of a record on."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._length = self._left = 0

    def take(self, data: memoryview) -> None:
        """Note bytes that have come."""
        at = 0
        while at < len(data):
            if self._left:
                taken = min(self._left, len(data) - at)
                self._left -= taken
            else:
                taken = min(_HEAD_BYTES - len(self._head), len(data) - at)
                self._head += data[at : at + taken]
                if len(self._head) == _HEAD_BYTES:
                    self._length = self._left = int.from_bytes(self._head[3:], "big")
                    self._head.clear()
            at += taken

    def least(self, size: int) -> int:
        """Return how many bytes are still to come at least before so many of content are there, beside those that are.

        Args:
            size: Of what is in records that are not whole yet, at least 1.
        """
        if self._left:
            return self._left + max(size - max(self._length - _BESIDE_BYTES, 0), 0)
        return _HEAD_BYTES - len(self._head) + size + _BESIDE_BYTES
