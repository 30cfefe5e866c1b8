"""What a crowd's client orders of its workers, and how they tell of it; both ends import this, and little else."""

from __future__ import annotations

import json
from typing import get_args

from splitload.base.errors import BundleError
from splitload.base.fields import Reader
from splitload.base.record import Record
from splitload.bundle.manifest import File, TensorSpec
from splitload.bundle.manifest import to_json as plain
from splitload.bundle.validate import file_entry, tensor_spec
from splitload.crowd.mechanisms import Compression

PLUGIN = "splitload-stages"  # the name of the worker plugin
PIECE_BYTES = 1 << 20  # of a stage's file, as it travels: a transfer that breaks goes on behind the last one
_TOPIC = "splitload-crowd"  # of the events in which workers tell of a crowd's tasks; its name follows


class StageOrder(Record):
    """A stage that a worker is to hold.

    Attributes:
        key: Its key in the cache, see `stage_key`.
        name: Which part of the model it is, for people.
        graph: Name of its graph, among its files.
        files: All that it reads.
        inputs: Names of the tensors that it reads.
        outputs: What it gives.
        prepack: Whether its session rearranges weights.
        mapped: Whether weights stay mapped from the file.
        optimize: Whether the runtime optimises the graph.
        table_start: The byte of the graph's file from which on it is read in places only; None where it is read whole.
    """

    key: str
    name: str
    graph: str
    files: tuple[File, ...]
    inputs: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    prepack: bool
    mapped: bool
    optimize: bool
    table_start: int | None


class TaskOrder(Record):
    """One stage of one item.

    Attributes:
        crowd: Name of the crowd, which is told of it.
        attempt: Its number there.
        stage: What to run, or to open only.
        runs: Whether it is run.
        needed: Names of the outputs that are read later.
        carried: Names of the tensors of the input that are read later.
        unload: Keys of the stages that have to leave memory first.
        alone: Whether no other stage may be in memory.
        keep: Whether the stages that leave memory stay on disk.
        compression: Whether outputs are compressed.
        link_bytes_per_s: What the worker's link carries, in bytes a second; None where that is not known.
    """

    crowd: str
    attempt: int
    stage: StageOrder
    runs: bool
    needed: tuple[str, ...]
    carried: tuple[str, ...]
    unload: tuple[str, ...]
    alone: bool
    keep: bool
    compression: Compression
    link_bytes_per_s: float | None


def written(order: TaskOrder) -> str:
    """Return an order as JSON, as it travels: Dask looks into tuples for what it knows, and leaves text alone."""
    return json.dumps(plain(order))


def read(text: str) -> TaskOrder:
    """Return an order that has travelled.

    Raises:
        BundleError: If it is none.
    """
    reader = Reader(json.loads(text), "order")
    reader.only(*TaskOrder._fields)
    stage = reader.child("stage")
    stage.only(*StageOrder._fields)
    return TaskOrder(
        crowd=reader.text("crowd"),
        attempt=reader.count("attempt"),
        stage=StageOrder(
            key=stage.sha256("key"),
            name=stage.text("name"),
            graph=stage.text("graph"),
            files=tuple(file_entry(file) for file in stage.items("files", at_least=1)),
            inputs=_texts(stage, "inputs"),
            outputs=tuple(tensor_spec(output) for output in stage.items("outputs")),
            prepack=stage.flag("prepack"),
            mapped=stage.flag("mapped"),
            optimize=stage.flag("optimize"),
            table_start=None if stage.get("table_start") is None else stage.count("table_start"),
        ),
        runs=reader.flag("runs"),
        needed=_texts(reader, "needed"),
        carried=_texts(reader, "carried"),
        unload=_texts(reader, "unload"),
        alone=reader.flag("alone"),
        keep=reader.flag("keep"),
        compression=reader.choice("compression", *get_args(Compression)),
        link_bytes_per_s=None if reader.get("link_bytes_per_s") is None else reader.number("link_bytes_per_s"),
    )


def key_of(crowd: str, attempt: int, sent: int) -> tuple[str, int, int]:
    """Return Dask's key of a task: a key that was used before could stand for what it meant then.

    Args:
        crowd: Name of the crowd.
        attempt: The number of the attempt.
        sent: How many times its stage was sent for it.
    """
    return f"splitload-{crowd}", attempt, sent


def _texts(reader: Reader, key: str) -> tuple[str, ...]:
    values = reader.sequence(key)
    if not all(isinstance(value, str) for value in values):
        raise BundleError(f"{reader.where}.{key} must be a list of strings")
    return tuple(values)


def topic(crowd: str) -> str:
    """Return the topic of the events in which workers tell of a crowd's tasks."""
    return f"{_TOPIC}:{crowd}"
