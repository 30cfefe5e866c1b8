"""This machine: jobs run in fresh processes here."""

from __future__ import annotations

from pathlib import Path

from splitload.base.errors import MissingPackageError
from splitload.base.machine import available_threads, cpu_architecture, cpu_model
from splitload.devices import PageCache
from splitload.devices.machine import Machine
from splitload.devices.measuring import REPEATS, MeasuringDevice
from splitload.measure import pagecache
from splitload.measure.fresh import Runner, run_job


class HostDevice(MeasuringDevice):
    """This machine as a device.

    Args:
        cache: The user's cache folder.
        repeats: Fresh processes for each figure, at least 1.
        refresh: Whether to measure again what the cache holds.
        run: Runs the fresh processes.
        page_cache: See `MeasuringDevice`.

    Raises:
        StageError: If files cannot be evicted here, and the page cache is to be cold.
    """

    description = "this machine, measured"

    def __init__(
        self,
        cache: Path,
        *,
        repeats: int = REPEATS,
        refresh: bool = False,
        run: Runner = run_job,
        page_cache: PageCache = "warm",
    ) -> None:
        if page_cache == "cold":
            pagecache.check()
        machine = Machine(
            "host", "this host", available_threads(), cpu_architecture(), cpu_model(), _onnxruntime_version, run
        )
        super().__init__(machine, cache, repeats=repeats, refresh=refresh, page_cache=page_cache)


def _onnxruntime_version() -> str:
    """Return the version of what measures here: of the C library where that can be used, else of the Python module."""
    from splitload.runtime.capi.find import NoLibraryError
    from splitload.runtime.capi.library import library
    from splitload.runtime.variants import check_floor

    try:
        version: str = library().version
        check_floor(version)
    except (NoLibraryError, MissingPackageError):
        import onnxruntime as ort

        version = ort.__version__
    return version
