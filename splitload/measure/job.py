"""What a fresh process is told to do, on this machine or on a device on the network: typed messages with a version.

A job is sent with a folder, and values of inputs and graphs of stages lie inside it. What a job loads besides lies
there as well, or elsewhere by an absolute path: the model of a stock session, and whatever the benchmark and studies
load, whose jobs stay on this machine. `to_json` gives the message, `read_job` checks one that has arrived: unknown
kinds, keys and versions are errors. Answers are objects of JSON, and every kind says which keys. Jobs on models are
here, those on single stages in `stage_jobs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, ClassVar

from splitload.base.errors import BundleError, UsageError
from splitload.base.fields import Reader
from splitload.bundle.manifest import TensorSpec

VERSION = 1


@dataclass(frozen=True, slots=True)
class Input:
    """An input of the model.

    Attributes:
        name: Its name.
        type: onnxruntime's word, for example "tensor(float)".
        shape: As in `TensorSpec`.
        file: The .npy file with its value; None where the process makes the value up.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None
    file: str | None = None


class Job:
    """What jobs have in common.

    Attributes:
        kind: The word of the message that tells the class.
        whole_process: Whether the time from the start of the interpreter counts: the process then imports nothing that
            it does not need, and stops after what is measured until it is told to go on.
        program: The module whose `main` does it; a study has jobs and a program of its own.
    """

    __slots__ = ()
    kind: ClassVar[str]
    whole_process: ClassVar[bool] = False
    program: ClassVar[str] = "splitload.measure.__main__"

    def to_json(self) -> dict[str, Any]:
        """Return the message, as plain JSON values."""
        values: dict[str, Any] = _plain(self)
        return {"version": VERSION, "kind": self.kind, **values}


@dataclass(frozen=True, slots=True)
class LoadModel(Job):
    """Load a model in one way, an arm, and run it; the only measurement of a time to first output.

    The answer has `ttfo_s`, its parts `load_s` and `first_inference_s`, `first_at_s` on the system's clock,
    `steady_runs_s`, `idle_memory_bytes`, `peak_memory_bytes`, `settled_memory_bytes` and `major_faults`; `engine`,
    "library" or "python", of the arms on onnxruntime, `runtime`, its version, of those that are one session, and
    `import_s`, `variant` and `arrays`, "numpy" or "buffers", of the splitload arms; and with `outputs` the names of
    .npy files of the first outputs, None for one that is no array.

    Where numpy is missing the splitload arms give and take buffers; where it or onnxruntime's Python module is missing
    the other arms on onnxruntime are sessions of the C library.

    Attributes:
        arm: One of `splitload.measure.arms.ARMS`.
        path: The file or bundle.
        inputs: The model's inputs.
        threads: Threads it is told to use; None for the engine's own rule.
        steady: Whether it is run again after the first output.
        outputs: Whether the first outputs are saved.
        whole: Whether only the time and the memory of the whole process count: values are read as late as can be, and
            the process ends after the first output. The answer has `first_at_s` and `process_peak_memory_bytes` then.
        module: How a torch module is built: "package", "name" and, where it is imported from there, "folder".
        cache: OpenVINO's model cache.
        weights: The weights of a model of ncnn.
        batch: Which dimension is the batch in each of ncnn's "inputs" and "outputs".
    """

    kind: ClassVar[str] = "load"
    whole_process: ClassVar[bool] = True
    arm: str
    path: str
    inputs: tuple[Input, ...]
    threads: int | None = None
    steady: bool = True
    outputs: bool = False
    whole: bool = False
    module: Mapping[str, str] | None = None
    cache: str | None = None
    weights: str | None = None
    batch: Mapping[str, list[int]] | None = None

    @classmethod
    def read(cls, row: Reader) -> LoadModel:
        """Return what a message says."""
        return cls(
            row.text("arm"),
            row.text("path"),
            inputs_of(row),
            None if row.get("threads") is None else row.count("threads", 1),
            row.flag("steady"),
            row.flag("outputs"),
            row.flag("whole"),
            None if row.get("module") is None else row.mapping("module"),
            row.optional_text("cache"),
            row.optional_text("weights"),
            None if row.get("batch") is None else row.mapping("batch"),
        )


@dataclass(frozen=True, slots=True)
class ConvertModel(Job):
    """Write the files that another engine reads; the answer is empty.

    Attributes:
        arm: The arm that reads them.
        model: The MODEL word.
        graph: The .onnx file.
        target: The folder to write into.
        inputs: The model's inputs.
    """

    kind: ClassVar[str] = "convert"
    arm: str
    model: str
    graph: str
    target: str
    inputs: tuple[Input, ...]

    @classmethod
    def read(cls, row: Reader) -> ConvertModel:
        """Return what a message says."""
        return cls(row.text("arm"), row.text("model"), row.text("graph"), row.text("target"), inputs_of(row))


@dataclass(frozen=True, slots=True)
class TrainEpoch(Job):
    """Train the last layers of a model for an epoch, in one arm's way.

    The answer has `losses`, `first_step_s` from the moment everything is imported, `first_at_s` on the system's clock,
    `first_step_peak_bytes` and `epoch_peak_bytes`.

    Attributes:
        arm: "splitload", "torch" or "torch-mmap".
        path: The bundle or the weights.
        data: The .npz file with samples by input, and their classes as "y".
        trainable: Pattern of the names of the weights that are trained; a bundle knows its own.
        batch_size: Samples of a step.
        learning_rate: Of Adam.
        threads: Torch's threads.
        module: How a torch module is built, see `LoadModel`; None of a bundle.
    """

    kind: ClassVar[str] = "epoch"
    whole_process: ClassVar[bool] = True
    arm: str
    path: str
    data: str
    trainable: str
    batch_size: int
    learning_rate: float
    threads: int
    module: Mapping[str, str] | None = None

    @classmethod
    def read(cls, row: Reader) -> TrainEpoch:
        """Return what a message says."""
        return cls(
            row.text("arm"),
            row.text("path"),
            row.text("data"),
            row.text("trainable"),
            row.count("batch_size", 1),
            row.number("learning_rate"),
            row.count("threads", 1),
            None if row.get("module") is None else row.mapping("module"),
        )


@dataclass(frozen=True, slots=True)
class LoadModule(Job):
    """Load a torch module of any size and run it; or write the files of all arms, or copy memory.

    The answer of an arm has `ttfo_s`, `load_s`, `first_inference_s`, `steady_inference_s` and `output`; that of
    "prepare" `model_bytes`, `num_stages` and `gpu`; that of "copy" `bytes_per_s`.

    Attributes:
        arm: One of `splitload.measure.modules.ARMS`, "prepare" or "copy".
        device: Torch's word.
        dtype: Torch's word, for example "float32".
        layers: Layers of the module.
        width: Its width.
        tokens: Of an input.
    """

    kind: ClassVar[str] = "module"
    arm: str
    device: str
    dtype: str
    layers: int
    width: int
    tokens: int

    @classmethod
    def read(cls, row: Reader) -> LoadModule:
        """Return what a message says."""
        words = (row.text(key) for key in ("arm", "device", "dtype"))
        arm, device, dtype = words
        return cls(arm, device, dtype, *(row.count(key, 1) for key in ("layers", "width", "tokens")))


MODEL_JOBS = (LoadModel, ConvertModel, TrainEpoch, LoadModule)


def read_job(data: Any, classes: Iterable[Any]) -> Job:
    """Return the job of a message.

    Args:
        data: Parsed JSON.
        classes: Those of jobs that it may be of.

    Raises:
        UsageError: If anything is missing, unknown or of the wrong type.
    """
    kinds = {each.kind: each for each in classes}
    try:
        top = Reader(data, "job")
        if top.get("version") != VERSION:
            raise BundleError(f"job.version must be {VERSION}, it is {top.get('version')!r:.40}")
        kind = kinds[top.choice("kind", *kinds)]
        top.only("version", "kind", *(field.name for field in fields(kind)))
        job: Job = kind.read(top)
    except BundleError as error:
        raise UsageError(f"a process is given a job that it cannot do: {error}") from error
    return job


def _plain(value: Any) -> Any:
    """Return a value, and whatever it holds, as plain JSON values."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, TensorSpec):
        return {key: _plain(each) for key, each in value._asdict().items()}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def inputs_of(row: Reader) -> tuple[Input, ...]:
    """Return the inputs of a message."""
    return tuple(Input(*tensor_of(each, "file"), _inside(each, "file")) for each in row.items("inputs"))


def _inside(row: Reader, key: str) -> str | None:
    """Return the relative path of a file that cannot lie outside the folder; None where none is named."""
    if row.get(key) is None:
        return None
    file = row.text(key)
    if any(path.anchor or ".." in path.parts for path in (PurePosixPath(file), PureWindowsPath(file))):
        raise BundleError(f"{row.where}.{key} must lie inside the folder, it is {file!r}")
    return file


def tensor_of(row: Reader, *others: str) -> TensorSpec:
    """Return the tensor of a row that has no more keys than it and `others`."""
    row.only(*TensorSpec._fields, *others)
    shape = None if row.get("shape") is None else tuple(row.sequence("shape"))
    if not all(size is None or isinstance(size, int | str) for size in shape or ()):
        raise BundleError(f"{row.where}.shape must hold sizes, names and null, it is {shape!r:.80}")
    return TensorSpec(row.text("name"), row.text("type"), shape)
