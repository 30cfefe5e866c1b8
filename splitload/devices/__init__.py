"""Devices: what can load and run a stage and say how long it took."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from splitload.base.errors import UsageError, unknown_name
from splitload.devices.pairing import address_of, is_served
from splitload.plan.graph import GraphKind, ModelGraph
from splitload.plan.profile import Profile, Segment

if TYPE_CHECKING:
    from splitload.bundle.manifest import TensorSpec, Variant
    from splitload.devices.runs import Runs
    from splitload.graphs.runtime import GraphRuntime
    from splitload.measure.fresh import Runner
    from splitload.measure.sampling import Arm, Sample
    from splitload.runtime.inputs import InputSpec

Progress = Callable[[int, int], None]
PageCache = Literal["warm", "cold"]
_FOLDER = Path(__file__).parent


class Device(Protocol):
    """What every device can do.

    Attributes:
        name: As given on the command line.
        source: "measured" or "simulated": where its profiles come from.
        graph_kind: Which graph of a model it runs.
        description: One line, for people.
    """

    name: str
    source: Literal["measured", "simulated"]
    graph_kind: GraphKind
    description: str

    @property
    def runtime(self) -> GraphRuntime:
        """The runtime that native graphs are made for, and by: its own, or this machine's where it is not there."""
        ...

    @property
    def measuring(self) -> Measuring | None:
        """What it can measure now; None where times are computed, or were stored."""
        ...

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


class Measuring(Protocol):
    """What a device can do that is there, and loads and runs what it is given: every figure is measured.

    Attributes:
        name: As of the device.
        page_cache: Whether what is loaded is in the page cache ("warm"), or evicted before each process ("cold").
    """

    name: str
    page_cache: PageCache

    @property
    def runtime(self) -> GraphRuntime:
        """The runtime that its native graphs are made for, and by."""
        ...

    @property
    def is_here(self) -> bool:
        """Whether it is this machine."""
        ...

    @property
    def environment(self) -> Mapping[str, str]:
        """What records say of it: its processor and its version of onnxruntime."""
        ...

    @property
    def run(self) -> Runner:
        """Does a job there in a fresh process."""
        ...

    def guess(self, graph: ModelGraph) -> Profile:
        """Return what blocks may cost, from nodes, bytes and operations alone: simulated, to begin a search with."""
        ...

    def measure(
        self,
        graph: ModelGraph,
        segments: Iterable[Segment],
        *,
        feeds: Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
    ) -> Profile:
        """Return the profile of `graph` with these segments measured as well; those it has are not measured again.

        Args:
            graph: The model.
            segments: Half-open ranges of blocks.
            feeds: Inputs; made up where missing.
            on_progress: Called as `on_progress(done, total)`.

        Raises:
            ModelError: If the model does not run on the feeds.
        """
        ...

    def runs(self, graph: ModelGraph, feeds: Mapping[str, Any] | None = None) -> AbstractContextManager[Runs]:
        """Give what measures stages and plans of `graph`, sample by sample.

        What an attempt has measured that was cut short is taken again by the next one.

        Raises:
            OutputError: If their files cannot be written.
        """
        ...

    def settled(self, graph: ModelGraph, feeds: Mapping[str, Any] | None = None) -> None:
        """Hear that what samples of `graph` were taken for is done: none is kept for another attempt."""
        ...

    def expect(self, paths: Sequence[Path]) -> None:
        """Hear of files that will be loaded later; they may travel while other things are measured."""
        ...

    def first_output(self, arm: Arm, inputs: Iterable[InputSpec], feeds: Mapping[str, Any]) -> Sample:
        """Load a model or a bundle once, in a fresh process, and run it.

        Args:
            arm: What is loaded, and how.
            inputs: The model's inputs.
            feeds: Values of inputs; made up where they are missing.

        Returns:
            Seconds by name, `ttfo_s`, `load_s`, `first_inference_s` and `process_s` among them; see `run_arms`.

        Raises:
            StageError: If it does not run.
        """
        ...

    def answer(
        self, arm: Arm, inputs: Iterable[InputSpec], feeds: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Load a model or a bundle once, in a fresh process, and return its outputs and what the process said.

        Args:
            arm: What is loaded, and how.
            inputs: The model's inputs.
            feeds: Values of inputs; made up where they are missing.

        Returns:
            A numpy array for each output, None for one that is no array; and the answer, see `LoadModel`.

        Raises:
            StageError: If it does not run.
        """
        ...

    def tune(
        self,
        folder: Path,
        variant: Variant,
        inputs: Sequence[TensorSpec],
        feeds: Mapping[str, Any],
        on_progress: Progress | None = None,
    ) -> Variant:
        """Return a variant whose stages are loaded in the ways that were measured to be best; see `tuning.tune`.

        Raises:
            ModelError: If a stage does not run on the feeds.
        """
        ...


def names() -> dict[str, Path | None]:
    """Return the known device names, with the TOML file of each simulated one, None for other kinds."""
    return {"host": None, **{path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}}


def open_device(name: str, cache: Path, *, refresh: bool = False, page_cache: PageCache = "warm") -> Device:
    """Return the device behind a DEVICE word of the command line.

    Args:
        name: `host`, a simulated device's name, the address of a served device or the name of one that was reached
            before, adb:SERIAL, or a path to a device (.toml) or profile (.json) file.
        cache: Where what is measured is kept.
        refresh: Whether to measure again what is in the cache.
        page_cache: Whether files are in the page cache when a process begins that loads them.

    Raises:
        UsageError: If there is no such device, or it measures nothing and so evicts nothing.
        ProfileError: If the file is not one of the two.
        DeviceError: If a served device cannot be reached.
    """
    known = names()
    reached: list[str] = []
    if name != "host" and name not in known and not Path(name).exists():
        from splitload.devices.acquaintances import acquaintances, url_of

        name = url_of(name, cache) or name
        reached = [each.name for each in acquaintances(cache)]
    if is_served(name):
        from splitload.devices.remote import RemoteDevice

        return RemoteDevice(address_of(name, cache), cache, refresh=refresh, page_cache=page_cache)
    if name == "host":
        from splitload.devices.host import HostDevice

        return HostDevice(cache, refresh=refresh, page_cache=page_cache)
    if page_cache != "warm":
        raise UsageError(f"--page-cache {page_cache} is for devices that measure, and on '{name}' times are computed")
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
    if ":" in name:
        served = "a served one is https://HOST:PORT, a phone on a cable adb:SERIAL"
        raise UsageError(f"unknown device '{name:.120}'; {served}")
    raise unknown_name("device", name, {*known, *reached})
