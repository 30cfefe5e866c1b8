"""Devices: what can load and run a stage and say how long it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from splitload.base.errors import UsageError, unknown_name
from splitload.plan.graph import GraphKind, ModelGraph
from splitload.plan.profile import Profile

Progress = Callable[[int, int], None]
_FOLDER = Path(__file__).parent


class Device(Protocol):
    """What every device can do.

    Attributes:
        name: As given on the command line.
        source: "measured" or "simulated".
        graph_kind: Which graph of a model it runs.
        description: One line, for people.
    """

    name: str
    source: Literal["measured", "simulated"]
    graph_kind: GraphKind
    description: str

    def profile(
        self,
        graph: ModelGraph,
        *,
        feeds: Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
    ) -> Profile:
        """Return the costs of every block of `graph`.

        Args:
            graph: The model, of this device's graph kind.
            feeds: Inputs of the inferences; made up where missing.
            on_progress: Called as `on_progress(done, total)`.
        """
        ...


def names() -> dict[str, Path | None]:
    """Return the known device names, with the TOML file of each simulated one."""
    return {"host": None, **{path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}}


def open_device(name: str, cache: Path, *, refresh: bool = False) -> Device:
    """Return the device behind a DEVICE word of the command line.

    Args:
        name: `host`, a simulated device's name, or a path to a device (.toml) or profile (.json) file.
        cache: Where `host` keeps what it measured.
        refresh: Whether `host` measures again what it has in the cache.

    Raises:
        UsageError: If there is no such device.
        ProfileError: If the file is not one of the two.
    """
    known = names()
    if name == "host":
        from splitload.devices.host import HostDevice

        return HostDevice(cache, refresh=refresh)
    path = known.get(name) or Path(name)
    if path.suffix == ".toml" and path.is_file():
        from splitload.devices.simulated import SimulatedDevice

        return SimulatedDevice.read(path)
    if path.suffix == ".json" and path.is_file():
        from splitload.devices.stored import StoredDevice

        return StoredDevice(path)
    if path.suffix in (".toml", ".json"):
        raise UsageError(f"no device or profile file '{name}'; known devices: {', '.join(sorted(known))}")
    if path.is_dir():
        raise UsageError(f"device '{name}' is a folder; give a device (.toml) or profile (.json) file in it")
    raise unknown_name("device", name, known)
