"""Jobs of fresh processes on the stages of a model: what each costs, ways to load them, and what they need.

All are done by the engine that a loader would choose there, which every answer names beside its other keys: `engine`,
"library" or "python", and `runtime`, the version of onnxruntime.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from splitload.base.errors import BundleError
from splitload.base.fields import Reader, is_count
from splitload.bundle.manifest import StageEntry, TensorSpec
from splitload.measure.job import Input, Job, inputs_of, tensor_of


@dataclass(frozen=True, slots=True)
class StageFile:
    """A stage to load and run.

    Attributes:
        blocks: Its half-open range of blocks.
        graph: Name of its .ort or .onnx file; weights lie where that says.
        inputs: Names of what it reads: inputs of the model and outputs of earlier stages.
        outputs: What it gives.
        prepack: Whether its first session has to rearrange weights.
        optimized: Whether the graph is taken as it is.
        reoptimize: Whether a session that rearranges weights is optimised as well.
        reading: Where in the file its weights begin, and where a loader that reads ahead ends, which is before them
            where all are read in places only; None where none does.
    """

    blocks: tuple[int, int]
    graph: str
    inputs: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    prepack: bool = False
    optimized: bool = True
    reoptimize: bool = False
    reading: tuple[int, int] | None = None

    @classmethod
    def of(cls, stage: StageEntry) -> StageFile:
        """Return a stage of a bundle as a job has it; its file lies in the job's folder."""
        reading = (stage.read_order[0], stage.read_order[-1]) if stage.read_order else None
        return cls(
            stage.blocks, stage.graph.name, stage.inputs, stage.outputs,
            stage.prepack, stage.optimized, stage.reoptimize, reading,
        )  # fmt: skip

    def optimizes(self, prepack: bool) -> bool:
        """Return whether onnxruntime optimises the graph of a session, which rearranges weights or does not."""
        return not self.optimized or (prepack and self.reoptimize)


@dataclass(frozen=True, slots=True)
class SampleStages(Job):
    """Load and run stages once, in order, each twice.

    The answer has `rows` of `start`, `end`, `load_s`, `first_inference_s` and `inference_s`, with `load_wait_s` and
    `first_wait_s`, what of the first two storage took, see `waiting`; and `serial_share`: the share of the shorter load
    of the pair that the longer one waits for, None without a pair.

    Attributes:
        inputs: The model's inputs.
        chain: The stages of a partition; each reads what those before give.
        segments: Further stages, loaded where one of the chain begins at the same block.
        pair: Two stages to load alone and together, or none.
    """

    kind: ClassVar[str] = "stages"
    inputs: tuple[Input, ...]
    chain: tuple[StageFile, ...]
    segments: tuple[StageFile, ...] = ()
    pair: tuple[StageFile, ...] = ()

    @classmethod
    def read(cls, row: Reader) -> SampleStages:
        """Return what a message says."""
        return cls(inputs_of(row), *(stages_of(row, key) for key in ("chain", "segments", "pair")))


@dataclass(frozen=True, slots=True)
class TryScheme(Job):
    """Load and run stage after stage in one way; cold files are read ahead as a loader does, whatever the way.

    The answer has `rows` of `first_s`, until the first result, and with `steady` of `steady_s`, of a later run.

    Attributes:
        inputs: The model's inputs.
        stages: All stages of a variant.
        mapped: Whether weights stay mapped.
        prefetch: Whether a thread of its own reads the file ahead.
        prepack: Whether weights are rearranged.
        steady: Whether each stage is run again after its first result.
    """

    kind: ClassVar[str] = "scheme"
    inputs: tuple[Input, ...]
    stages: tuple[StageFile, ...]
    mapped: bool
    prefetch: bool
    prepack: bool
    steady: bool = True

    @classmethod
    def read(cls, row: Reader) -> TryScheme:
        """Return what a message says."""
        flags = (row.flag(name) for name in ("mapped", "prefetch", "prepack", "steady"))
        return cls(inputs_of(row), stages_of(row, "stages"), *flags)


@dataclass(frozen=True, slots=True)
class ComparePacked(Job):
    """Run stage after stage as it is and with rearranged weights.

    The answer has `differ`: for each stage whether the two answer otherwise, beyond rounding.

    Attributes:
        inputs: The model's inputs.
        stages: All stages of a variant.
    """

    kind: ClassVar[str] = "packed"
    inputs: tuple[Input, ...]
    stages: tuple[StageFile, ...]

    @classmethod
    def read(cls, row: Reader) -> ComparePacked:
        """Return what a message says."""
        return cls(inputs_of(row), stages_of(row, "stages"))


@dataclass(frozen=True, slots=True)
class MeasureArena(Job):
    """Run the stages of a partition again and again, as a loader does under a ceiling.

    The answer has `anonymous_bytes`, what sessions and runs take beside weights, and `input_bytes`, of the inputs.

    Attributes:
        inputs: The model's inputs.
        stages: All stages.
        reserve_bytes: With how large a piece of memory the arena begins.
    """

    kind: ClassVar[str] = "arena"
    inputs: tuple[Input, ...]
    stages: tuple[StageFile, ...]
    reserve_bytes: int

    @classmethod
    def read(cls, row: Reader) -> MeasureArena:
        """Return what a message says."""
        return cls(inputs_of(row), stages_of(row, "stages"), row.count("reserve_bytes"))


STAGE_JOBS = (SampleStages, TryScheme, ComparePacked, MeasureArena)


def stages_of(row: Reader, key: str) -> tuple[StageFile, ...]:
    """Return the stages of a message."""
    return tuple(map(_stage, row.items(key)))


def _stage(row: Reader) -> StageFile:
    row.only(*(field.name for field in fields(StageFile)))
    graph, blocks, inputs = row.text("graph"), row.sequence("blocks"), row.sequence("inputs")
    if graph in (".", "..") or "/" in graph or "\\" in graph:
        raise BundleError(f"{row.where}.graph must be the name of a file in the folder, it is {graph!r}")
    if len(blocks) != 2 or not all(isinstance(each, int) for each in blocks):
        raise BundleError(f"{row.where}.blocks must be two whole numbers, they are {blocks!r:.40}")
    if not all(isinstance(each, str) for each in inputs):
        raise BundleError(f"{row.where}.inputs must be strings")
    outputs = tuple(tensor_of(each) for each in row.items("outputs"))
    start, end = blocks
    prepack, optimized, reoptimize = (row.flag(name) for name in ("prepack", "optimized", "reoptimize"))
    return StageFile((start, end), graph, tuple(inputs), outputs, prepack, optimized, reoptimize, reading=_reading(row))


def _reading(row: Reader) -> tuple[int, int] | None:
    if row.get("reading") is None:
        return None
    places = row.sequence("reading")
    if len(places) != 2 or not all(map(is_count, places)):
        raise BundleError(f"{row.where}.reading must be two places in a file, they are {places!r:.40}")
    return places[0], places[1]
