"""What a device says it is: processor, memory, storage, runtime, and how it is now."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Any

from splitload import __version__
from splitload.base.machine import available_threads, cpu_architecture, cpu_model
from splitload.base.memory import left_bytes
from splitload.deploy.conditions import conditions, processors_of
from splitload.runtime.capi.find import NoLibraryError, beside_module, named_path
from splitload.runtime.capi.library import version_of

_MOST_FEATURES = 400  # words in /proc/cpuinfo


def fixed_description(name: str, storage_read_bytes_per_s: float | None) -> dict[str, Any]:
    """Return what does not change while the service runs, as JSON values; None for what the system does not tell.

    Args:
        name: What the device is called.
        storage_read_bytes_per_s: What was measured; None where it could not be.
    """
    return {
        "name": name,
        "splitload": __version__,
        "onnxruntime": runtime_version(),
        "cpu": cpu_architecture(),
        "cpu_model": cpu_model(),
        "features": _features(),
        "threads": available_threads(),
        "processors": processors_of(),
        "memory_bytes": _memory_bytes(),
        "storage_read_bytes_per_s": storage_read_bytes_per_s,
    }


def present_description(used_bytes: int, cap_bytes: int) -> dict[str, Any]:
    """Return what changes, as JSON values.

    Args:
        used_bytes: What the cache of files takes.
        cap_bytes: What it may take.
    """
    return {
        "available_memory_bytes": left_bytes(),
        "cache_used_bytes": used_bytes,
        "cache_cap_bytes": cap_bytes,
        "conditions": conditions().to_json(),
    }


def runtime_version() -> str | None:
    """Return the version of onnxruntime that loads bundles here; None where there is none."""
    try:
        version = version_of(named_path() or beside_module())
    except NoLibraryError:
        version = None
    if version is None:
        try:
            version = importlib.metadata.version("onnxruntime")
        except importlib.metadata.PackageNotFoundError:
            return None
    return version


def _features() -> list[str]:
    """Return the features of the processor, as Linux names them."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            line = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return []
    return line.partition(":")[2].split()[:_MOST_FEATURES]


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
