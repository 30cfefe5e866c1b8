"""What the manifest of a bundle says, as values; `validate.py` checks it."""

from __future__ import annotations

from types import MappingProxyType

from splitload.base.errors import UsageError
from splitload.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any, Literal

    Loss = Literal["cross-entropy", "binary-cross-entropy", "mse"]
    Optimizer = Literal["sgd", "adam"]
    OutputKind = Literal["logits", "log-probabilities", "probabilities"]
else:
    Loss = Optimizer = OutputKind = str

LOSSES: tuple[Loss, ...] = ("cross-entropy", "binary-cross-entropy", "mse")
OPTIMIZERS: tuple[Optimizer, ...] = ("sgd", "adam")
OUTPUT_KINDS: tuple[OutputKind, ...] = ("logits", "log-probabilities", "probabilities")

MANIFEST = "manifest.json"  # the file of a bundle that says what it holds
FORMAT = "splitload-bundle"
TORCH_FORMAT = "splitload-torch"  # of the bundles of torch modules, whose manifest is `torch/format.py`'s
VERSION = 2  # what is written
VERSION_OF_MEMORY = 3  # what is written where a ceiling, or what stages need under one, is said
READABLE = (1, 2, 3)  # what is read, for ever
NO_VERSION = (1 << 63) - 1  # what onnxruntime says of a model without a version
_TABLE_BYTES = 1 << 20  # from here on it matters for memory whether a table comes as a whole or in places
DEFAULT_TAIL = "default"  # the personalized last stage that is loaded unless another is named


class File(Record):
    """A file of the bundle: its name in the folder, its size and its SHA-256."""

    name: str
    bytes: int
    sha256: str


class TensorSpec(Record):
    """A tensor that enters or leaves a stage or the model.

    Attributes:
        name: Its name.
        type: onnxruntime's word, for example "tensor(float)".
        shape: One entry a dimension, a name or None where it is open; None where the rank is unknown.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None


class StageEntry(Record):
    """One stage of a variant.

    Attributes:
        name: Which part of the model it is, for people.
        blocks: Half-open range of blocks.
        graph: The .onnx or .ort file.
        weights: The file its weights are mapped from, or None where they are in the graph file.
        weights_bytes: Bytes of the weights that no earlier stage reads.
        inputs: Names of model inputs and of outputs of earlier stages.
        outputs: What it gives.
        prepack: Whether the first session rearranges weights for speed, at the price of a slower load.
        trainable: Whether it holds all trainable layers.
        shares: Names of files of other stages that it reads weights from.
        optimized: Whether the graph is taken as it is, or optimised by the runtime when it is loaded.
        mapped: Whether weights stay mapped from the file, or are read into memory.
        prefetch: Whether the file is read ahead by a thread of its own while the runtime makes the session.
        upgrade: Whether a session with rearranged weights takes over after the first answer.
        read_order: Where in the .ort file each larger weight starts, in the order in which they are used, and where
            reading ahead ends: behind it lies what is read in places only. Empty where that is not known.
        reoptimize: Whether a session with rearranged weights is optimised by the runtime as well.
        working_bytes: The most that the tensors of one of its runs take at a time, what it reads and makes included;
            None where that is not known, as for the others.
        passing_bytes: What inputs and outputs of earlier stages take during its run that later stages read and it does
            not.
        mapped_bytes: What a run of it reads of weights, shared ones included; of tables the rows that are looked up.
        session_bytes: What its session takes whether it runs or not, beside weights.
    """

    name: str
    blocks: tuple[int, int]
    graph: File
    weights: File | None
    weights_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    prepack: bool
    trainable: bool
    shares: tuple[str, ...] = ()
    optimized: bool = True
    mapped: bool = True
    prefetch: bool = False
    upgrade: bool = False
    read_order: tuple[int, ...] = ()
    reoptimize: bool = False
    working_bytes: int | None = None
    passing_bytes: int | None = None
    mapped_bytes: int | None = None
    session_bytes: int | None = None

    def optimizes(self, prepack: bool) -> bool:
        """Return whether the runtime optimises the graph of a session, which rearranges weights or does not."""
        return not self.optimized or (prepack and self.reoptimize)

    @property
    def table_start(self) -> int | None:
        """The byte of its graph's file from which on a large table lies, which is read in places only; or None."""
        order = self.read_order
        return order[-1] if order and self.graph.bytes - order[-1] >= _TABLE_BYTES else None


MEMORY_OF_STAGE = ("working_bytes", "passing_bytes", "mapped_bytes", "session_bytes")
MEMORY_OF_VARIANT = ("residency", "arena_bytes", "input_bytes")


class Canary(Record):
    """A tiny stage without inputs that uses each internal operator of a variant, and what it must answer.

    Attributes:
        graph: The .ort file; its outputs are tensors of float32.
        answers: The least that each element may be, all outputs one after the other in C order, then the most; as
            little-endian float32.
    """

    graph: File
    answers: File

    def files(self) -> Iterator[File]:
        """Yield both files."""
        yield self.graph
        yield self.answers


class Needs(Record):
    """What a native variant needs beside its processor's family.

    Attributes:
        block: Channels that its layouts hold together, or None where it uses no blocked layout.
        operators: The operators outside the standard that it uses, as "domain:name", sorted.
        ort_format: Version of onnxruntime's own file format, or None where no stage is in it.
        canary: What shows that a runtime is fit for it; None where none could be made, and it needs the very version
            of the runtime that made it, and the very processor.
    """

    block: int | None
    operators: tuple[str, ...]
    ort_format: str | None
    canary: Canary | None = None


class Variant(Record):
    """One way to run the model: its stages, and where they run.

    Attributes:
        kind: "native" or "portable".
        cpu: Processor it was made on (see `machine.cpu_architecture`), or None where it runs on any.
        runtime: onnxruntime version that made it, or None where any runs it.
        threads: Loading threads of the execution scheme.
        overlap: Whether inference starts while later stages load.
        stages: In the order they run, at least one.
        needs: What it needs; None in version 1, where it needs `cpu` and `runtime` as they are.
        residency: How much of it may be in memory at a time: a ceiling in bytes, or "stage" for the weights of one
            stage; None for all of it.
        arena_bytes: What the working memory of one run came to, as measured where the variant was made; None where that
            is not known.
        input_bytes: Of the inputs it was measured with; None where that is not known.
    """

    kind: Literal["native", "portable"]
    cpu: str | None
    runtime: str | None
    threads: int
    overlap: bool
    stages: tuple[StageEntry, ...]
    needs: Needs | None = None
    residency: Literal["stage"] | int | None = None
    arena_bytes: int | None = None
    input_bytes: int | None = None

    def fits(self, cpu: str, runtime: str) -> bool:
        """Return whether it was made for this processor and runtime version, and nothing is left to try."""
        return self.cpu in (None, cpu) and self.runtime in (None, runtime)

    def sharing(self) -> frozenset[int]:
        """Return the numbers of the stages that read weights of another of its stages, or hold such weights.

        Prepared for faster inference, or read into memory, they would be there once for each.
        """
        own = {file.name for stage in self.stages for file in (stage.graph, stage.weights) if file is not None}
        read = {name for stage in self.stages for name in stage.shares} & own
        return frozenset(
            number
            for number, stage in enumerate(self.stages)
            if not own.isdisjoint(stage.shares)
            or not read.isdisjoint(file.name for file in (stage.graph, stage.weights) if file is not None)
        )

    def steps(self, wanted: Iterable[str]) -> list[tuple[int, list[str], list[str]]]:
        """Return the stages that some outputs need, in order: index, outputs needed, tensors read for the last time."""
        alive = set(wanted)
        steps = []
        for index in range(len(self.stages) - 1, -1, -1):
            stage = self.stages[index]
            needed = [spec.name for spec in stage.outputs if spec.name in alive]
            if needed:
                steps.append((index, needed, [name for name in stage.inputs if name not in alive]))
                alive.update(stage.inputs)
        return steps[::-1]


class Weight(Record):
    """A weight that is trained, and where its bytes lie in the weights file of the last stage.

    Attributes:
        name: Its name; the training steps read it by that.
        shape: Its size; its elements are float32, in C order.
        offset: First byte.
    """

    name: str
    shape: tuple[int, ...]
    offset: int


class Step(Record):
    """A graph that makes one training step of the last stage; `training/training_step.py` says what it reads.

    Attributes:
        loss: "cross-entropy", "binary-cross-entropy" or "mse".
        optimizer: "sgd" or "adam".
        file: The .onnx file.
    """

    loss: Loss
    optimizer: Optimizer
    file: File


class Training(Record):
    """How the last stage is trained on the device.

    Attributes:
        features: Names of what the last stage reads; a step reads the same, of as many samples as there are.
        output: Name of the output that is trained.
        weights: What is trained.
        steps: Graphs that train it, at most one for each loss and optimiser.
        output_kind: What the output is taken as by a loss of classes; None where there are none, and in version 1.
        output_doubt: Why it may be something else, for people; None where it is sure.
    """

    features: tuple[str, ...]
    output: str
    weights: tuple[Weight, ...]
    steps: tuple[Step, ...]
    output_kind: OutputKind | None = None
    output_doubt: str | None = None


class Metadata(Record):
    """What the source model says of itself; clients read names of classes, strides and vocabularies there.

    Attributes:
        producer_name: What wrote the model.
        graph_name: Name of its graph.
        domain: Where it comes from, for example "org.example".
        description: For people.
        graph_description: For people.
        version: Its version, of 64 bits with a sign.
        custom_metadata_map: Whatever else its maker wrote down.
    """

    producer_name: str = ""
    graph_name: str = ""
    domain: str = ""
    description: str = ""
    graph_description: str = ""
    version: int = NO_VERSION
    custom_metadata_map: Mapping[str, str] = MappingProxyType({})


class Manifest(Record):
    """What `manifest.json` says.

    Attributes:
        model: Name of the source model.
        model_sha256: Its hash.
        model_bytes: Its size.
        created_with: Versions of what made the bundle.
        cpu: Processor it was made on.
        device: Device the bundle was made for; where it was specialised, `plan` may be of another one.
        plan: How it was found: agent, objective, seed, predicted seconds; for people and records.
        inputs: The model's inputs.
        outputs: The model's outputs.
        variants: In order of preference; the last fits everywhere.
        training: How the last stage is trained; None where nothing is.
        metadata: What the model says of itself; None where that is not known.
        model_data: Files of the model's weights, relative to its folder; `model_sha256` is of the model and these.
            None where it has none.
    """

    model: str
    model_sha256: str
    model_bytes: int
    created_with: Mapping[str, str]
    cpu: str
    device: str
    plan: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: tuple[Variant, ...]
    training: Training | None = None
    metadata: Metadata | None = None
    model_data: tuple[str, ...] | None = None

    def is_one_stage(self, variant: Variant) -> bool:
        """Return whether a variant is one stage, which reads and gives what the model does."""
        stage = variant.stages[0]
        return (
            len(variant.stages) == 1
            and set(stage.inputs) == {spec.name for spec in self.inputs}
            and {spec.name for spec in stage.outputs} == {spec.name for spec in self.outputs}
        )

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values."""
        return {"format": FORMAT, "version": self._version(), **to_json(self)}

    def _version(self) -> int:
        """Return the least version that has all that is said: readers of before take what they can."""
        for variant in self.variants:
            for stage in variant.stages:
                if any(getattr(stage, name) is not None for name in MEMORY_OF_STAGE):
                    return VERSION_OF_MEMORY
            if any(getattr(variant, name) is not None for name in MEMORY_OF_VARIANT):
                return VERSION_OF_MEMORY
        return VERSION

    def files(self) -> Iterator[File]:
        """Yield every file of every variant."""
        for variant in self.variants:
            for stage in variant.stages:
                yield stage.graph
                if stage.weights is not None:
                    yield stage.weights
            if variant.needs is not None and variant.needs.canary is not None:
                yield from variant.needs.canary.files()
        if self.training is not None:
            for step in self.training.steps:
                yield step.file

    def graphs(self) -> Iterator[File]:
        """Yield every graph: of stages, of canaries and of training steps."""
        for variant in self.variants:
            yield from (stage.graph for stage in variant.stages)
            if variant.needs is not None and variant.needs.canary is not None:
                yield variant.needs.canary.graph
        if self.training is not None:
            yield from (step.file for step in self.training.steps)


def without_tail(manifest: Manifest) -> Manifest:
    """Return what a bundle computes before its trainable last stage: the outputs are what that stage reads.

    Raises:
        UsageError: If the bundle was built without trainable layers.
    """
    if manifest.training is None:
        raise UsageError(
            "the bundle has no trainable stage; 'splitload train MODEL --trainable SPEC' makes one that has"
        )
    features = set(manifest.training.features)
    variants = [variant._replace(stages=variant.stages[:-1]) for variant in manifest.variants]
    made = {spec.name: spec for stage in variants[0].stages for spec in stage.outputs if spec.name in features}
    return manifest._replace(outputs=tuple(made.values()), variants=tuple(variants), training=None)


def to_json(value: Any) -> Any:
    """Return an entry of the manifest, and whatever it holds, as plain JSON values.

    A field that says nothing, None by default and now, is left out: later fields change no older manifest.
    """
    if hasattr(value, "_asdict"):
        unsaid = {key for key, default in value._field_defaults.items() if default is None}
        return {key: to_json(each) for key, each in value._asdict().items() if each is not None or key not in unsaid}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    return dict(value) if isinstance(value, dict | MappingProxyType) else value
