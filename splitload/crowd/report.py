"""What a crowd did: for each device its tasks, memory and processor seconds, and what was sent; all of it measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from splitload.crowd.members import Member
from splitload.crowd.traffic import Traffic
from splitload.plan.schedule import Schedule

if TYPE_CHECKING:
    from splitload.crowd.driver import Driver


@dataclass(frozen=True)
class DeviceReport:
    """What one worker did.

    Attributes:
        name: What it is called.
        address: Where it listens.
        variant: "native" or "portable", or None if it got no stage.
        engine: What ran the stages, "library" or "python".
        tasks: Number of tasks whose results counted.
        run_s: Seconds in which it ran stages.
        load_s: Seconds in which it loaded them.
        cpu_s: Processor seconds of its process since it joined, the sending of tensors included.
        idle_bytes: Resident memory of its process when it was idle; None where that cannot be told, as below.
        peak_bytes: The most that it took above that.
        most_resident: The most stages that were in its memory at a time.
        is_present: Whether it is part of the crowd now.
        timeline: When it loaded and ran stages, in seconds from the start of the crowd; its number is the thread.
    """

    name: str
    address: str
    variant: str | None
    engine: str
    tasks: int
    run_s: float
    load_s: float
    cpu_s: float
    idle_bytes: int | None
    peak_bytes: int | None
    most_resident: int
    is_present: bool
    timeline: Schedule


@dataclass(frozen=True)
class CrowdReport:
    """What a crowd did.

    Attributes:
        devices: In the order in which they joined.
        stages: Names of the stages, in order.
        traffic: Bytes of inputs, outputs and tensors between stages.
        stages_from_client_bytes: Bytes of stages that the client has sent.
        stages_between_bytes: Bytes of stages that workers have sent each other.
        notes: What the user should know of workers, by their names.
    """

    devices: tuple[DeviceReport, ...]
    stages: tuple[str, ...]
    traffic: Traffic
    stages_from_client_bytes: int
    stages_between_bytes: int
    notes: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        devices = [
            {**vars(device), "timeline": device.timeline.to_json()}  # not by `asdict`, which would take that apart
            for device in self.devices
        ]
        return {
            "devices": devices,
            "stages": list(self.stages),
            **asdict(self.traffic),
            "stages_from_client_bytes": self.stages_from_client_bytes,
            "stages_between_bytes": self.stages_between_bytes,
            "notes": self.notes,
        }


async def report_of(driver: Driver) -> CrowdReport:
    """Return what a crowd did so far; called in the event loop of its client."""
    members = driver.members
    everyone = sorted([*members.gone, *members.present.values()], key=members.number)
    return CrowdReport(
        devices=tuple(_device(member, driver) for member in everyone),
        stages=tuple(link.order.name for link in driver.chains.common.links),
        traffic=driver.traffic,
        stages_from_client_bytes=driver.supply.from_client_bytes,
        stages_between_bytes=driver.supply.between_bytes,
        notes={**{address: f"it takes no part: {why}" for address, why in members.refused.items()}, **driver.notes},
    )


def _device(member: Member, driver: Driver) -> DeviceReport:
    def seconds(kind: str) -> float:
        return sum(task.end_s - task.start_s for task in member.tasks if task.kind == kind)

    told, chain = member.told, driver.chains.of.get(member.address)
    return DeviceReport(
        name=member.name,
        address=member.address,
        variant=None if chain is None else chain.variant.kind,
        engine=member.introduced["engine"],
        tasks=member.done,
        run_s=seconds("infer"),
        load_s=seconds("load"),
        cpu_s=told["cpu_s"] - member.first_cpu_s,
        idle_bytes=told["idle_bytes"],
        peak_bytes=told["peak_bytes"],
        most_resident=told["most_resident"],
        is_present=member.address in driver.members.present,
        timeline=Schedule(tuple(sorted(member.tasks, key=lambda task: task.start_s)), "measured"),
    )
