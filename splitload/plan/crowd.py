"""A crowd that a plan is made for: how many workers of which kinds there are, as a TOML file says it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from splitload.base.errors import BundleError, UsageError
from splitload.base.fields import Reader
from splitload.base.sizes import megabytes, read_bytes

MAX_FILE_BYTES = 1 << 16
MAX_GROUPS, MAX_WORKERS = 100, 100_000
_MAX_FACTOR = 1e6  # of a speed or a link, and its reciprocal the least: what is worked out stays finite
_BYTES_PER_MBIT = 1e6 / 8
# What a worker takes beside the stage once it has opened its first one: the runtime's tables, its code and parcels of
# tensors. Measured: 18 MB beside stages of DistilBERT, onnxruntime 1.32 on x86-64
RUNTIME_BYTES = 20_000_000


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """Workers that are alike.

    Attributes:
        count: How many there are.
        memory_bytes: What a stage may take on each, above what the idle worker and the runtime take.
        speed: How many times faster each is than the device of the profile.
        link_bytes_per_s: What the link of each carries.
    """

    count: int
    memory_bytes: int
    speed: float
    link_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Crowd:
    """The workers of a crowd, and how many inputs they get at a time.

    Attributes:
        groups: Its workers, at least one.
        batch: N, the inputs of a batch, all there from the beginning.
    """

    groups: tuple[WorkerGroup, ...]
    batch: int

    @property
    def num_workers(self) -> int:
        """W, how many workers there are."""
        return sum(group.count for group in self.groups)

    @property
    def memory_bytes(self) -> int:
        """What a stage may take on the worker with the most memory."""
        return max(group.memory_bytes for group in self.groups)

    def holders(self, stage_bytes: int) -> tuple[WorkerGroup, ...]:
        """Return the workers that can hold a stage which takes so many bytes."""
        return tuple(group for group in self.groups if group.memory_bytes >= stage_bytes)

    @classmethod
    def read(cls, path: Path) -> Crowd:
        """Read the file that says it; every key must be there, and no other one.

        Raises:
            UsageError: If it cannot be read, or is no such file.
        """
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                raise UsageError(f"--crowd '{path}' is larger than {MAX_FILE_BYTES} bytes, no crowd's file is")
            return _crowd(Reader(tomllib.loads(data.decode()), "crowd"))
        except OSError as error:
            raise UsageError(f"--crowd '{path}' cannot be read: {error.strerror}") from error
        except BundleError as error:
            raise UsageError(f"--crowd '{path}': {error}") from error
        except (ValueError, RecursionError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"--crowd '{path}' is not TOML: {error}") from error


def _crowd(top: Reader) -> Crowd:
    """Return what a file says.

    Raises:
        BundleError: If it says something else.
    """
    top.only("batch", "workers")
    groups = tuple(_group(row) for row in top.items("workers", 1, MAX_GROUPS))
    crowd = Crowd(groups, top.count("batch", 1))
    if crowd.num_workers > MAX_WORKERS:
        raise BundleError(f"crowd.workers are {crowd.num_workers}, allowed are {MAX_WORKERS}")
    if crowd.batch > MAX_WORKERS**2:
        raise BundleError(f"crowd.batch is {crowd.batch}, allowed is {MAX_WORKERS**2}")
    return crowd


def _group(row: Reader) -> WorkerGroup:
    row.only("count", "memory", "speed", "link_mbit_s")
    word = row.text("memory")
    try:
        memory_bytes = read_bytes(word)
    except ValueError as error:
        raise BundleError(f"{row.where}.memory: {error}") from error
    if memory_bytes <= RUNTIME_BYTES:
        least, given = megabytes(RUNTIME_BYTES), megabytes(memory_bytes)
        raise BundleError(f"{row.where}.memory is {given}; the runtime alone takes {least}, and stages come on top")
    speed, link_mbit_s = _factor(row, "speed"), _factor(row, "link_mbit_s")
    return WorkerGroup(row.count("count", 1), memory_bytes - RUNTIME_BYTES, speed, link_mbit_s * _BYTES_PER_MBIT)


def _factor(row: Reader, key: str) -> float:
    value = row.number(key)
    if not 1 / _MAX_FACTOR <= value <= _MAX_FACTOR:
        raise BundleError(f"{row.where}.{key} must be from {1 / _MAX_FACTOR:g} to {_MAX_FACTOR:g}, it is {value:g}")
    return value
