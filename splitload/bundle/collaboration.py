"""The folder `NAME.collaboration` beside a bundle: how a device and a server share its inferences.

It has a manifest and the graphs that both compute. Their weights are those of the bundle's stages, which they read
there by the names of these files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from splitload.base.errors import BundleError, unknown_name
from splitload.base.fields import Reader, is_count
from splitload.base.record import Record
from splitload.bundle.manifest import MANIFEST, File, TensorSpec, to_json
from splitload.bundle.read import check_files, checked, read_json
from splitload.bundle.validate import file_entry, tensor_spec

FORMAT, VERSION = "splitload-collaboration", 1
SUFFIX = ".collaboration"
SHARED = "shared"  # the arm that counts
MOST_S, MAX_RANK = 3600.0, 32
_WORDS = "bool double float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8"
_TYPES = frozenset(f"tensor({word})" for word in _WORDS.split())
MAX_LEVELS, MAX_PIECES, MAX_PLANS, MAX_ARMS, MAX_STEPS = 256, 1 << 14, 1024, 16, 4096
Kind = Literal["send", "receive", "compute"]


class RowTensor(Record):
    """A tensor that is exchanged by rows.

    Attributes:
        name: Its name.
        type: onnxruntime's word.
        shape: Of all of it.
        axis: Along which its rows lie; None where it has none.
        lines: How often rows begin anew: the elements before the axis, those of a block of channels as one.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    axis: int | None
    lines: int


class SharedLevel(Record):
    """A place in the model where rows are exchanged.

    Attributes:
        tensors: Names of the tensors that cross it.
        num_rows: Rows of each.
        is_whole: Whether they are there as a whole or not at all.
    """

    tensors: tuple[str, ...]
    num_rows: int
    is_whole: bool


class Part(Record):
    """Rows of a tensor: all of it where `stop` is None."""

    tensor: str
    start: int
    stop: int | None


class PieceEntry(Record):
    """A graph that computes rows.

    Attributes:
        graph: The .onnx file.
        reads: What it reads, in the order of its inputs.
        gives: What it gives, in the order of its outputs.
    """

    graph: File
    reads: tuple[Part, ...]
    gives: tuple[Part, ...]


class ProgramStep(Record):
    """One step of a machine.

    Attributes:
        kind: "send" and "receive" are of rows of a level, "compute" of a piece.
        number: Of the level, or of the piece.
        parts: The rows of tensors there; none for a piece.
    """

    kind: Kind
    number: int
    parts: tuple[Part, ...]


class ArmEntry(Record):
    """One way to do an inference.

    Attributes:
        name: `SHARED`, or that of a plan that shares nothing: "device", "server" or "layer cut".
        predicted_s: When the outputs are there, predicted.
        device: What the device does.
        server: What the server does.
    """

    name: str
    predicted_s: float
    device: tuple[ProgramStep, ...]
    server: tuple[ProgramStep, ...]


class PlanEntry(Record):
    """How an inference is done on a link.

    Attributes:
        bytes_per_s: What the link carries.
        arms: The shared plan, and perhaps others to compare it with.
    """

    bytes_per_s: float
    arms: tuple[ArmEntry, ...]


class Collaboration(Record):
    """What the manifest of a collaboration says.

    Attributes:
        model: Name of the model.
        bundle_sha256: Hash of the manifest of the bundle that the weights are in.
        cpu: Processor that the graphs were made for; None for any.
        inputs: The model's inputs.
        outputs: The model's outputs.
        tensors: All that are exchanged.
        levels: Places of exchange, that of the inputs first and that of the outputs last.
        pieces: Graphs.
        plans: In order of their links, the slowest first, at least one.
    """

    model: str
    bundle_sha256: str
    cpu: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tensors: tuple[RowTensor, ...]
    levels: tuple[SharedLevel, ...]
    pieces: tuple[PieceEntry, ...]
    plans: tuple[PlanEntry, ...]

    def files(self) -> Iterator[File]:
        """Yield every file."""
        for piece in self.pieces:
            yield piece.graph

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values."""
        return {"format": FORMAT, "version": VERSION, **to_json(self)}

    def plan_for(self, bytes_per_s: float, arm: str = SHARED) -> tuple[int, int, ArmEntry]:
        """Return an arm of the plan of the fastest link that is no faster than one; the slowest where all are faster.

        Args:
            bytes_per_s: What the link carries.
            arm: Its name.

        Returns:
            The number of the plan, that of the arm in it, and the arm.

        Raises:
            UsageError: If no plan has such an arm.
        """
        having = [
            (number, place, each)
            for number, plan in enumerate(self.plans)
            for place, each in enumerate(plan.arms)
            if each.name == arm
        ]
        if not having:
            raise unknown_name("arm", arm, {each.name for plan in self.plans for each in plan.arms})
        slower = [each for each in having if self.plans[each[0]].bytes_per_s <= bytes_per_s]
        return slower[-1] if slower else having[0]


def beside(bundle: Path) -> Path:
    """Return where the collaboration of a bundle lies, unless it is put elsewhere."""
    return bundle.with_name(bundle.name.removesuffix(".splitload") + SUFFIX)


def read_collaboration(folder: Path) -> Collaboration:
    """Read and check the folder of a collaboration.

    Raises:
        BundleError: If anything is amiss.
    """
    cure = "'splitload collaborate plan' makes one"
    found = checked(folder, read_json(folder, cure, "none"), validate_collaboration)
    check_files(folder, found, "hashes")
    return found


def write_collaboration(folder: Path, collaboration: Collaboration) -> None:
    """Write the manifest into a folder that has the files."""
    (folder / MANIFEST).write_text(json.dumps(collaboration.to_json()), encoding="utf-8")


def validate_collaboration(data: Any) -> Collaboration:
    """Check parsed JSON against the whole format and return the manifest.

    Raises:
        BundleError: With the first thing that is wrong and where.
    """
    top = Reader(data, "manifest")
    if top.data.get("format") != FORMAT:
        raise BundleError(f"the manifest is not a collaboration's: format is {top.data.get('format')!r:.40}")
    if top.data.get("version") != VERSION:
        raise BundleError(
            f"the collaboration has version {top.data.get('version')!r:.20}, this splitload reads version {VERSION}; "
            "plan it again or update splitload"
        )
    top.only("format", "version", *Collaboration.__annotations__)
    inputs, outputs = (tuple(map(tensor_spec, top.items(key, 1, 1024))) for key in ("inputs", "outputs"))
    tensors = tuple(map(_tensor, top.items("tensors", 1, 4 * MAX_LEVELS)))
    known = {each.name: each for each in tensors}
    if len(known) != len(tensors):
        raise BundleError("manifest.tensors has a name twice")
    levels = tuple(_level(row, known) for row in top.items("levels", 2, MAX_LEVELS))
    pieces = tuple(_piece(row, known) for row in top.items("pieces", 0, MAX_PIECES))
    plans = tuple(_plan(row, _There(known, levels, pieces)) for row in top.items("plans", 1, MAX_PLANS))
    if [plan.bytes_per_s for plan in plans] != sorted({plan.bytes_per_s for plan in plans}):
        raise BundleError("manifest.plans are not in the order of their links")
    for specs, level in ((inputs, levels[0]), (outputs, levels[-1])):
        if [spec.name for spec in specs] != list(level.tensors):
            raise BundleError("the first and the last of manifest.levels must have the model's inputs and outputs")
    return Collaboration(
        top.text("model"), top.sha256("bundle_sha256"), top.optional_text("cpu"), inputs, outputs, tensors, levels,
        pieces, plans,
    )  # fmt: skip


def _tensor(row: Reader) -> RowTensor:
    row.only(*RowTensor.__annotations__)
    shape = tuple(row.sequence("shape"))
    if len(shape) > MAX_RANK or not all(is_count(size) and size > 0 for size in shape) or math.prod(shape) >= 1 << 40:
        raise BundleError(f"{row.where}.shape must hold counts of at least 1, it is {shape!r:.80}")
    axis = None if row.get("axis") is None else row.count("axis")
    lines = row.count("lines", 1)
    if row.text("type") not in _TYPES:
        raise BundleError(f"{row.where}.type is {row.text('type')!r:.80}; tensors of numbers alone are exchanged")
    rows = 1 if axis is None else shape[axis] if axis < len(shape) else 0
    if rows == 0 or math.prod(shape) % (lines * rows):
        raise BundleError(f"{row.where}: rows along axis {axis} do not begin {lines} times in {shape}")
    return RowTensor(row.text("name"), row.text("type"), shape, axis, lines)


def _level(row: Reader, tensors: Mapping[str, RowTensor]) -> SharedLevel:
    row.only(*SharedLevel.__annotations__)
    names, count, is_whole = tuple(row.sequence("tensors")), row.count("num_rows", 1), row.flag("is_whole")
    for name in names:
        if not isinstance(name, str) or name not in tensors:
            raise BundleError(f"{row.where}.tensors names {name!r:.80}, which manifest.tensors has not")
        tensor = tensors[name]
        if not is_whole and (tensor.axis is None or tensor.shape[tensor.axis] != count):
            raise BundleError(f"{row.where}.num_rows is {count}, which '{name}' has not")
    if not names or (is_whole and count != 1):
        raise BundleError(f"{row.where} has no tensors, or {count} rows of what is whole")
    return SharedLevel(names, count, is_whole)


def _piece(row: Reader, tensors: Mapping[str, RowTensor]) -> PieceEntry:
    row.only(*PieceEntry.__annotations__)
    parts = (tuple(_part(each, tensors) for each in row.items(key, 1, 1024)) for key in ("reads", "gives"))
    graph = file_entry(row.child("graph"))
    if not graph.name.endswith(".onnx"):  # what it reads besides would not be looked at
        raise BundleError(f"{row.where}.graph.name must end in .onnx, it is '{graph.name}'")
    return PieceEntry(graph, *parts)


def _part(row: Reader, tensors: Mapping[str, RowTensor]) -> Part:
    row.only(*Part.__annotations__)
    name = row.text("tensor")
    if name not in tensors:
        raise BundleError(f"{row.where}.tensor is {name!r:.80}, which manifest.tensors has not")
    start, stop = row.count("start"), None if row.get("stop") is None else row.count("stop")
    axis = tensors[name].axis
    if stop is not None and (axis is None or not start < stop <= tensors[name].shape[axis]):
        raise BundleError(f"{row.where}: '{name}' has no rows {start} to {stop}")
    return Part(name, start, stop)


def _plan(row: Reader, there: _There) -> PlanEntry:
    row.only(*PlanEntry.__annotations__)
    bytes_per_s = row.number("bytes_per_s")
    if bytes_per_s < 0:
        raise BundleError(f"{row.where}.bytes_per_s must be at least 0, it is {bytes_per_s}")
    arms = tuple(_arm(each, there) for each in row.items("arms", 1, MAX_ARMS))
    names = [arm.name for arm in arms]
    if SHARED not in names or len(set(names)) != len(names):
        raise BundleError(f"{row.where}.arms must have '{SHARED}', and no name twice")
    return PlanEntry(bytes_per_s, arms)


class _There(NamedTuple):
    """What steps may be of."""

    tensors: Mapping[str, RowTensor]
    levels: tuple[SharedLevel, ...]
    pieces: tuple[PieceEntry, ...]


def _arm(row: Reader, there: _There) -> ArmEntry:
    row.only(*ArmEntry.__annotations__)
    predicted_s = row.number("predicted_s")
    if not 0 <= predicted_s <= MOST_S:
        raise BundleError(f"{row.where}.predicted_s must be from 0 to {MOST_S:g}, it is {predicted_s}")
    steps = {key: tuple(_step(each, there) for each in row.items(key, 0, MAX_STEPS)) for key in _MACHINES}
    for sender, receiver in (_MACHINES, _MACHINES[::-1]):
        sent = [step[1:] for step in steps[sender] if step.kind == "send"]
        if sent != [step[1:] for step in steps[receiver] if step.kind == "receive"]:
            raise BundleError(f"{row.where}: what the {sender} sends is not what the {receiver} waits for")
    return ArmEntry(row.text("name"), predicted_s, steps["device"], steps["server"])


_MACHINES = ("device", "server")


def _step(row: Reader, there: _There) -> ProgramStep:
    row.only(*ProgramStep.__annotations__)
    parts = tuple(_part(each, there.tensors) for each in row.items("parts", 0, 4 * MAX_LEVELS))
    step = ProgramStep(row.choice("kind", "send", "receive", "compute"), row.count("number"), parts)
    if step.kind == "compute":
        is_there = step.number < len(there.pieces) and not parts
    else:
        names = [part.tensor for part in parts]
        is_there = step.number < len(there.levels) and 0 < len(names) == len(set(names))
        is_there = is_there and set(names) <= set(there.levels[step.number].tensors)
    if not is_there:
        raise BundleError(f"{row.where} is of rows or of a piece that there is not")
    return step
