"""Simulated devices: a few figures in a TOML file, from which load and inference times follow."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from splitload.base.errors import ProfileError
from splitload.devices import Progress
from splitload.graphs.here import HERE
from splitload.graphs.runtime import GraphRuntime
from splitload.plan.graph import GraphKind, ModelGraph
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention

SCHEMA_VERSION = 2
MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """What a device file says, beside its `schema_version` and `[sources]`: by key where each figure comes from.

    A device file has all of these keys and no others. `[sources]` is for people and may hold anything.

    Attributes:
        name: Name of the device; of one that ships, the name of its file.
        description: One line, for people.
        threads: Loads that can run at a time, at least 1.
        storage_bandwidth_bytes_per_s: Weight bytes a second that storage delivers, to all loads together; above 0.
        prepare_bytes_per_s: Weight bytes a second that one load parses, copies and rearranges once they are read;
            above 0.
        node_s: Load seconds of each graph node: parsed, checked, its kernel made; at least 0.
        stage_fixed_s: Load seconds that every stage pays, however small it is; at least 0.
        flops_per_s: Floating-point operations a second while inferring; above 0.
        serial_share: σ of `Contention`, from 0 to 1.
        thread_penalty: Share by which loads take longer with as many stages as threads or more, see `Contention`; at
            least 0.
    """

    name: str
    description: str
    threads: int
    storage_bandwidth_bytes_per_s: float
    prepare_bytes_per_s: float
    node_s: float
    stage_fixed_s: float
    flops_per_s: float
    serial_share: float
    thread_penalty: float


class SimulatedDevice:
    """A device whose times are computed.

    A stage loads in `fixed + nodes · node_s + bytes / prepare + bytes / storage`, of which the last is read from
    storage that all loads share, and infers in `flops / flops_per_s`. How loads slow each other down and when which
    runs is `splitload.plan.schedule`'s.

    Args:
        model: Its figures.
    """

    source: Literal["measured", "simulated"] = "simulated"
    graph_kind: GraphKind = "portable"

    def __init__(self, model: DeviceModel) -> None:
        self.model = model
        self.name = model.name
        self.description = model.description

    @classmethod
    def read(cls, path: Path) -> SimulatedDevice:
        """Read a device file.

        Raises:
            ProfileError: If it is not TOML, or a key is missing, unknown or out of range.
        """
        return cls(_checked(_parse(path), path.name))

    @property
    def runtime(self) -> GraphRuntime:
        """This machine's: a native graph for what is not there is laid out for this processor."""
        return HERE

    @property
    def measuring(self) -> None:
        """None: times are computed."""
        return None

    def profile(
        self,
        graph: ModelGraph,
        *,
        feeds: Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
    ) -> Profile:
        """Return the simulated costs of every block; see `Device.profile`."""
        model = self.model
        blocks = []
        for block in graph.blocks:
            read_s = block.weights_bytes / model.storage_bandwidth_bytes_per_s
            nodes_s = (block.end - block.start) * model.node_s
            load_s = model.stage_fixed_s + nodes_s + block.weights_bytes / model.prepare_bytes_per_s + read_s
            infer_s = block.flops / model.flops_per_s
            blocks.append(BlockProfile(block.name, block.weights_bytes, Cost(load_s, infer_s, infer_s, read_s)))
        return Profile(
            model=graph.name,
            model_sha256=graph.source_sha256,
            graph=graph.kind,
            device=self.name,
            source="simulated",
            blocks=tuple(blocks),
            stage_fixed_s=model.stage_fixed_s,
            contention=Contention(model.threads, model.serial_share, model.thread_penalty),
        )


def _parse(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ProfileError(f"{path.name}: larger than {MAX_FILE_BYTES} bytes, no device file is")
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return data
    except OSError as error:
        raise ProfileError(f"cannot read device file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path.name}: not TOML ({error})") from error


def _checked(data: dict[str, Any], name: str) -> DeviceModel:
    """Return the figures in `data`, each checked."""
    known = [field.name for field in fields(DeviceModel)]
    version = data.pop("schema_version", None)
    if version == 1:
        raise ProfileError(
            f"{name}: schema_version must be {SCHEMA_VERSION}, it is 1, where storage_bandwidth_bytes_per_s was all of "
            "loading; now it is storage alone: add prepare_bytes_per_s and node_s, then write schema_version = 2"
        )
    if version != SCHEMA_VERSION:
        has = "it is missing" if version is None else f"it is {version!r}"
        raise ProfileError(
            f"{name}: schema_version must be {SCHEMA_VERSION}, {has}; write schema_version = {SCHEMA_VERSION} at the "
            f"top, and these keys: {', '.join(known)}"
        )
    data.pop("sources", None)  # where the figures come from, for people
    if unknown := sorted(set(data) - set(known)):
        raise ProfileError(f"{name}: unknown keys {unknown}; known are {', '.join(known)}")
    if missing := [key for key in known if key not in data]:
        raise ProfileError(f"{name}: missing keys {missing}; each must be given, above [sources]")
    for key in ("name", "description"):
        if not isinstance(data[key], str) or not data[key].isprintable():
            raise ProfileError(f"{name}: {key} must be a string of one line, it is {data[key]!r:.80}")
    if isinstance(data["threads"], bool) or not isinstance(data["threads"], int) or data["threads"] < 1:
        raise ProfileError(f"{name}: threads must be a whole number of at least 1, it is {data['threads']!r}")
    for key in known[3:]:
        value = data[key]
        positive = key.endswith("_per_s")
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise ProfileError(f"{name}: {key} must be a finite number, it is {value!r:.80}")
        if value < 0 or (positive and value == 0):
            raise ProfileError(f"{name}: {key} must be {'above 0' if positive else 'at least 0'}, it is {value!r}")
        if key == "serial_share" and value > 1:
            raise ProfileError(f"{name}: serial_share must be a share of at most 1, it is {value!r}")
    return DeviceModel(**data)
