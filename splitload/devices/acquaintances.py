"""What served devices said of themselves when they were opened last, kept beside their codes in the user's cache."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from splitload.base.atomic import write_text
from splitload.base.errors import SplitloadError, UsageError
from splitload.base.fields import Reader
from splitload.base.record import Record
from splitload.devices.pairing import ROOM, Address

_SUFFIX = ".said"
_WORDS = ("name", "cpu_model", "onnxruntime")
_COUNTS = ("threads", "memory_bytes", "storage_read_bytes_per_s")
_MOST_CHARS = 200


class Acquaintance(Record):
    """A served device that this desk has the code of.

    Attributes:
        name: What it is called.
        url: Where it was reached last; the code is no part of it.
        cpu_model: Its processor, for people.
        threads: Loads that can run there at a time.
        memory_bytes: Of the device; None where it does not say.
        storage_read_bytes_per_s: As it measured when its service began; None where it could not.
        onnxruntime: Version of the runtime there.
        opened_s: When it was reached last, in seconds since 1970.
    """

    name: str
    url: str
    cpu_model: str
    threads: int
    memory_bytes: int | None
    storage_read_bytes_per_s: int | None
    onnxruntime: str
    opened_s: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return self._asdict()


def remember(address: Address, said: dict[str, Any]) -> None:
    """Keep what a device says of itself; nothing where it has no code of its own in the cache.

    Args:
        address: Where it was reached.
        said: What it answered, checked as far as this machine uses it.
    """
    if address.file is None:
        return
    kept: dict[str, Any] = {"url": address.url, "opened_s": int(time.time())}
    kept.update((word, str(said.get(word))[:_MOST_CHARS]) for word in _WORDS)
    kept.update((name, _count(said.get(name))) for name in _COUNTS)
    write_text(address.file.with_suffix(_SUFFIX), json.dumps(kept), "what the device says")


def acquaintances(cache: Path) -> list[Acquaintance]:
    """Return the devices that were opened, by their names; what cannot be read of one is left out.

    Args:
        cache: The user's cache folder.
    """
    found = []
    for file in sorted((cache / ROOM).glob(f"*{_SUFFIX}")):
        try:
            row = Reader(json.loads(file.read_text(encoding="utf-8")), file.name)
            made = Acquaintance(
                row.text("name"),
                row.text("url"),
                row.text("cpu_model"),
                row.count("threads", 1),
                _optional(row, "memory_bytes"),
                _optional(row, "storage_read_bytes_per_s"),
                row.text("onnxruntime"),
                row.count("opened_s"),
            )
        except (OSError, ValueError, SplitloadError):
            continue
        found.append(made)
    return sorted(found, key=lambda each: (each.name, each.url))


def url_of(name: str, cache: Path) -> str | None:
    """Return where the device of a name was reached last; None where none is called so.

    Raises:
        UsageError: If several are.
    """
    urls = {each.url for each in acquaintances(cache) if each.name == name}
    if len(urls) > 1:
        raise UsageError(
            f"several served devices are called '{name}': give the address, one of {', '.join(sorted(urls))}"
        )
    return urls.pop() if urls else None


def _count(value: Any) -> int | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1 << 60
    return int(value) if is_number else None


def _optional(row: Reader, key: str) -> int | None:
    return None if row.get(key) is None else row.count(key)
