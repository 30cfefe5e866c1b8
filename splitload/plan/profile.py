"""A profile: load and inference seconds per block of one model on one device, and what follows from them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from splitload.base.errors import BundleError, ProfileError
from splitload.base.fields import Reader, is_count
from splitload.plan.costs import LoadCosts, LoadSums
from splitload.plan.partition import Partition
from splitload.plan.schedule import Contention, Schedule, simulate

SCHEMA_VERSION = 2
MAX_FILE_BYTES = 16 << 20
MAX_SECONDS = 1e9  # no cost is larger; what is worked out from such ones stays finite
MAX_SHARE = 1e3
LEAST_AGAIN_S_PER_BYTE = 1e-12  # a terabyte a second, which no memory is as fast as: more bytes never cost nothing

Segment = tuple[int, int]  # a run of blocks, half-open


@dataclass(frozen=True, slots=True)
class Cost:
    """What one segment of a model costs on a device, each part alone and in a fresh session.

    Attributes:
        load_s: Seconds from the load call until the segment can infer.
        first_inference_s: Seconds of the first inference, with the page faults that loading left to it.
        inference_s: Seconds of a later inference.
        read_s: Seconds of `load_s` that storage is busy for; loads share it. 0 where files are cached.
    """

    load_s: float
    first_inference_s: float
    inference_s: float
    read_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BlockProfile:
    """One block: its name, its weights in bytes, and its cost when it is loaded as a stage of its own."""

    name: str
    weights_bytes: int
    cost: Cost


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured or simulated costs of one model on one device.

    The cost of a segment is its measured cost where `segments` holds it; otherwise it is predicted. Loading follows
    `load_model`. Inference takes the sum over the blocks, scaled so that all of them take what the whole does; reading
    takes the sum over the blocks.

    Attributes:
        model: Name of the model, for people.
        model_sha256: Hash of the source model.
        graph: Which graph the blocks are of, "native" or "portable".
        device: Name of the device.
        source: "measured" or "simulated".
        blocks: In topological order, at least one.
        stage_fixed_s: Load seconds every stage pays once, contained in the blocks' `load_s`.
        contention: How parallel loads interfere, and what a load call and a cut cost besides.
        segments: Costs of segments that were measured, by half-open block range.
        environment: Runtime version, machine and the like, for provenance.
    """

    model: str
    model_sha256: str
    graph: Literal["native", "portable"]
    device: str
    source: Literal["measured", "simulated"]
    blocks: tuple[BlockProfile, ...]
    stage_fixed_s: float
    contention: Contention
    segments: Mapping[Segment, Cost] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def num_blocks(self) -> int:
        """Number of blocks N."""
        return len(self.blocks)

    def cost(self, start: int, end: int) -> Cost:
        """Return the cost of the segment `[start, end)`, measured where it was, predicted otherwise."""
        measured = self.segments.get((start, end))
        if measured is not None:
            return measured
        blocks = self.blocks[start:end]
        load_s = self.load_model.load_s(LoadSums.of([block.cost.load_s for block in blocks]))
        return Cost(
            load_s,
            sum(block.cost.first_inference_s for block in blocks) * self.inference_scale("first_inference_s"),
            sum(block.cost.inference_s for block in blocks) * self.inference_scale("inference_s"),
            min(sum(block.cost.read_s for block in blocks), load_s),
        )

    def inference_scale(self, part: Literal["first_inference_s", "inference_s"]) -> float:
        """Return what the whole model takes for each second of its blocks alone: 1 where it was not measured.

        Blocks that run alone pay for starting and ending a run each.
        """
        measured = self.segments.get((0, self.num_blocks))
        total = sum(getattr(block.cost, part) for block in self.blocks)
        return getattr(measured, part) / total if measured is not None and total > 0 else 1.0

    @property
    def load_model(self) -> LoadCosts:
        """How the loads of blocks make up that of a stage; the whole model loads as it was measured, if it was."""
        measured = self.segments.get((0, self.num_blocks))
        blocks = LoadSums.of([block.cost.load_s for block in self.blocks])
        return LoadCosts.fitted(self.stage_fixed_s, blocks, None if measured is None else measured.load_s)

    @property
    def cut_inference_s(self) -> float:
        """Seconds that each cut adds to a later inference: what blocks alone take beyond the whole, for each cut.

        0 where the whole model was not measured.
        """
        measured = self.segments.get((0, self.num_blocks))
        if measured is None or self.num_blocks == 1:
            return 0.0
        alone_s = sum(block.cost.inference_s for block in self.blocks)
        return max(alone_s - measured.inference_s, 0.0) / (self.num_blocks - 1)

    @property
    def come_again_s_per_byte(self) -> float:
        """Seconds for each byte of weights that left memory and is read again, from wherever it was profiled.

        It is what the first inference takes beyond a later one, as it maps the pages that loading left to it, and what
        storage is busy for: with cached files the former, on a simulated device the latter. The former is the
        difference of two noisy figures, and small; it is taken to be no less than `LEAST_AGAIN_S_PER_BYTE`.
        """
        measured = self.segments.get((0, self.num_blocks))
        costs = [block.cost for block in self.blocks] if measured is None else [measured]
        again_s = sum(max(cost.first_inference_s - cost.inference_s, 0.0) + cost.read_s for cost in costs)
        weights_bytes = sum(block.weights_bytes for block in self.blocks)
        return max(again_s / max(weights_bytes, 1), LEAST_AGAIN_S_PER_BYTE)

    def whole(self) -> Cost:
        """Return the cost of the whole model as one stage."""
        return self.cost(0, self.num_blocks)

    def slowest_load_s(self, partition: Partition) -> float:
        """Return the largest load time of any stage alone, in seconds; all are loaded no sooner."""
        return max(self.cost(start, end).load_s for start, end in partition.stages())

    def schedule(self, partition: Partition) -> Schedule:
        """Return the schedule that the execution policy gives this partition."""
        costs = [self.cost(start, end) for start, end in partition.stages()]
        return simulate(
            [cost.load_s for cost in costs],
            [cost.first_inference_s for cost in costs],
            self.contention,
            "simulated" if self.source == "simulated" else "predicted",
            [cost.read_s for cost in costs],
        )

    def to_json(self) -> dict[str, Any]:
        """Return the profile as plain JSON values; `from_json` reads them back."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "model_sha256": self.model_sha256,
            "graph": self.graph,
            "device": self.device,
            "source": self.source,
            "stage_fixed_s": self.stage_fixed_s,
            "contention": self.contention._asdict(),
            "blocks": [
                {"name": block.name, "weights_bytes": block.weights_bytes, **asdict(block.cost)}
                for block in self.blocks
            ],
            "segments": [
                {"start": start, "end": end, **asdict(cost)} for (start, end), cost in sorted(self.segments.items())
            ],
            "environment": dict(self.environment),
        }

    @classmethod
    def from_json(cls, data: Any, name: str = "profile") -> Profile:
        """Read what `to_json` wrote.

        Args:
            data: Parsed JSON.
            name: How errors call it, usually the file's name.

        Raises:
            ProfileError: If anything is missing, unknown, of the wrong type, negative or not finite.
        """
        try:
            top = Reader(data, "profile")
            version = top.get("schema_version")
            if version != SCHEMA_VERSION:
                raise ProfileError(
                    f"schema version {version!r:.40}, expected {SCHEMA_VERSION}; "
                    "write it again with 'splitload profile'"
                )
            top.only(
                "schema_version", "model", "model_sha256", "graph", "device", "source",
                "stage_fixed_s", "contention", "blocks", "segments", "environment",
            )  # fmt: skip
            contention = top.child("contention")
            contention.only(*Contention._fields)
            contention.get("threads")
            return cls(
                model=top.text("model"),
                model_sha256=top.text("model_sha256"),
                graph=top.get("graph"),
                device=top.text("device"),
                source=top.get("source"),
                blocks=tuple(
                    BlockProfile(row.text("name"), row.count("weights_bytes"), _cost(row, "name", "weights_bytes"))
                    for row in top.items("blocks")
                ),
                stage_fixed_s=top.get("stage_fixed_s"),
                contention=Contention(**contention.data),
                segments={
                    (row.count("start"), row.count("end")): _cost(row, "start", "end") for row in top.items("segments")
                },
                environment=top.mapping("environment"),
            )
        except BundleError as error:
            raise ProfileError(f"{name}: not a splitload profile: {error}") from error
        except ProfileError as error:
            raise ProfileError(f"{name}: {error}") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a profile file.

        Raises:
            ProfileError: If it cannot be read or does not hold a profile.
        """
        path = Path(path)
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ProfileError(f"{path.name}: larger than {MAX_FILE_BYTES} bytes, no profile is")
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ProfileError(f"cannot read profile {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            if isinstance(error, ProfileError):
                raise
            raise ProfileError(f"{path.name}: not JSON ({error})") from error
        return cls.from_json(data, path.name)


def _cost(row: Reader, *others: str) -> Cost:
    """Return the cost in a row of a profile file that holds nothing else but the keys `others`."""
    row.only("load_s", "first_inference_s", "inference_s", "read_s", *others)
    return Cost(row.get("load_s"), row.get("first_inference_s"), row.get("inference_s"), row.get("read_s"))


def _check(profile: Profile) -> None:
    """Raise `ProfileError` unless every number of `profile` is usable."""

    def seconds(value: Any, what: str) -> None:
        if not _within(value, MAX_SECONDS):
            raise ProfileError(
                f"{what} must be a finite number of seconds, not negative and at most {MAX_SECONDS:g}; "
                f"it is {value!r:.40}"
            )

    if profile.source not in ("measured", "simulated"):
        raise ProfileError(f"source must be 'measured' or 'simulated'; it is {profile.source!r}")
    if profile.graph not in ("native", "portable"):
        raise ProfileError(f"graph must be 'native' or 'portable'; it is {profile.graph!r}")
    if not profile.blocks:
        raise ProfileError("a profile needs at least one block")
    seconds(profile.stage_fixed_s, "stage_fixed_s")
    rows = [(f"block {block.name!r}", block.cost) for block in profile.blocks]
    rows += [(f"segment {start}-{end}", cost) for (start, end), cost in profile.segments.items()]
    for what, cost in rows:
        for key, value in asdict(cost).items():
            seconds(value, f"{what}: {key}")
        if cost.read_s > cost.load_s:
            raise ProfileError(f"{what}: read_s is part of load_s, but {cost.read_s!r} is more than {cost.load_s!r}")
    for block in profile.blocks:
        if not is_count(block.weights_bytes):
            raise ProfileError(
                f"block {block.name!r}: weights_bytes must be a count, it is {block.weights_bytes!r:.40}"
            )
    for start, end in profile.segments:
        if not 0 <= start < end <= profile.num_blocks:
            raise ProfileError(f"segment {start}-{end} lies outside the {profile.num_blocks} blocks")
    contention = profile.contention
    threads = contention.threads
    if not is_count(threads) or threads < 1:
        raise ProfileError(f"threads must be at least 1, it is {threads!r:.40}")
    seconds(contention.start_s, "start_s")
    seconds(contention.cut_infer_s, "cut_infer_s")
    for key, share in (("serial_share", contention.serial_share), ("thread_penalty", contention.thread_penalty)):
        most = 1 if key == "serial_share" else MAX_SHARE
        if not _within(share, most):
            raise ProfileError(f"{key} must be a finite share, not negative and at most {most:g}; it is {share!r:.40}")


def _within(value: Any, most: float) -> bool:
    """Return whether a value is a number from 0 to `most`; no other comparison is safe for numbers of any size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
