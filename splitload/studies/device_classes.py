"""Classes of emulated devices: what each has of storage, processors, memory and link, and what its page cache holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from splitload.base.errors import unknown_name
from splitload.devices import PageCache

LINK_BITS_PER_S = 200_000_000
_PROCESS_S = 1.2  # of a fresh process, its imports and the pause before it, on a processor of this machine
_PERIOD_US = 5_000  # a twentieth of the system's own: a share of a processor is one at every moment


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """What the devices of a class have.

    Attributes:
        name: Its name.
        storage_bytes_per_s: What its storage reads in a second; None for as much as this machine's does.
        processors: Which of this machine's it runs on, as cpuset lists them.
        processor_share: How much of one processor it has in all; None for all of those.
        memory_share: How much memory it has for a model, as a share of what that needs as one mapped stage; None for
            as much as this machine has.
        page_cache: Whether files are in memory when a process begins that loads them.
        link_bits_per_s: In each direction.
    """

    name: str
    storage_bytes_per_s: int | None = None
    processors: str = "0-1"
    processor_share: float | None = None
    memory_share: float | None = None
    page_cache: PageCache = "cold"
    link_bits_per_s: int = LINK_BITS_PER_S

    def sample_s(self, model_bytes: int) -> float:
        """Return about how many seconds a fresh process takes that loads a model from this storage."""
        storage_s = 0.0 if self.storage_bytes_per_s is None else model_bytes / self.storage_bytes_per_s
        return _PROCESS_S / (self.processor_share or 1.0) + storage_s

    def limits(self) -> dict[str, dict[str, str]]:
        """Return what is written into the files of its control groups, see `ControlGroups`."""
        share = self.processor_share
        quota_us = -1 if share is None else round(share * _PERIOD_US)
        return {
            "memory": {},
            "cpuset": {"cpuset.mems": "0", "cpuset.cpus": self.processors},
            "cpu": {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": str(quota_us)},
        }


CLASSES: Mapping[str, DeviceClass] = MappingProxyType(
    {
        each.name: each
        for each in (
            DeviceClass("emmc", storage_bytes_per_s=45_000_000),
            DeviceClass("sd", storage_bytes_per_s=20_000_000),
            DeviceClass("slow-core", storage_bytes_per_s=250_000_000, processors="0", processor_share=0.25),
            DeviceClass("small-memory", storage_bytes_per_s=250_000_000, memory_share=1 / 3),
            DeviceClass("fast", page_cache="warm"),
        )
    }
)


def class_named(name: str) -> DeviceClass:
    """Return the class of a name.

    Raises:
        UsageError: If there is none.
    """
    if name not in CLASSES:
        raise unknown_name("class of devices", name, CLASSES)
    return CLASSES[name]
