"""Writes the folder of a collaboration: plans, and the graphs that they need, on the weights of a bundle's stages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitload.base.errors import UsageError
from splitload.base.regular import sha256_of
from splitload.bundle.collaboration import (
    FORMAT,
    SHARED,
    ArmEntry,
    Collaboration,
    Part,
    PieceEntry,
    PlanEntry,
    ProgramStep,
    SharedLevel,
    beside,
    validate_collaboration,
    write_collaboration,
)
from splitload.bundle.manifest import MANIFEST, File, Manifest, TensorSpec, Variant
from splitload.bundle.read import read_manifest
from splitload.bundle.replace import check_place, replacing
from splitload.collaborative.optimum import Optimum
from splitload.collaborative.pieces import ComputedPiece, Pieces
from splitload.collaborative.program import Compute, Send, Step, programs
from splitload.collaborative.shared_plan import SharedPlan
from splitload.graphs.held import HeldWeights
from splitload.graphs.proto import is_external
from splitload.graphs.rewrite import raw_bytes
from splitload.plan.graph import ModelGraph

MOST_BESIDE, SMALL_BYTES = 0.1, 1 << 20  # what a collaboration may take: a share of the bundle's bytes, or so much


@dataclass(frozen=True)
class Planned:
    """A plan for a link.

    Attributes:
        bytes_per_s: What the link carries.
        plan: Who computes what.
        predicted_s: When it answers, predicted.
        baselines: Plans that share nothing and when they answer, by name.
        optimum: The best plan of a grid; None where none was looked for.
        energy_j: What it takes of the device, predicted; None where that was not asked for.
    """

    bytes_per_s: float
    plan: SharedPlan
    predicted_s: float
    baselines: Mapping[str, tuple[SharedPlan, float]] = field(default_factory=dict)
    optimum: Optimum | None = None
    energy_j: float | None = None

    @property
    def baselines_s(self) -> dict[str, float]:
        """When the plans that share nothing answer, by name."""
        return {name: seconds for name, (_, seconds) in self.baselines.items()}


def write(
    bundle: Path, model: ModelGraph, pieces: Pieces, plans: Sequence[Planned], target: Path | None = None
) -> Path:
    """Write the collaboration of a bundle; what was there is replaced as a whole.

    Args:
        bundle: The bundle.
        model: The graph that a variant of it was cut from.
        pieces: Of that.
        plans: For links of different speed.
        target: Where it is written; None for the place beside the bundle.

    Returns:
        The folder.

    Raises:
        UsageError: If the bundle has no such variant, or not the weights.
        OutputError: If it cannot be written.
    """
    manifest = read_manifest(bundle)
    variant = _variant(manifest, model)
    target = beside(bundle) if target is None else target
    with replacing(target, lambda place: check_place(place, FORMAT)) as made:
        writer = _Writer(made, bundle, variant, model, pieces)
        entries = tuple(writer.plan(each) for each in sorted(plans, key=lambda each: each.bytes_per_s))
        writer.check_size(manifest)
        found = Collaboration(
            manifest.model, sha256_of(bundle / MANIFEST), variant.cpu, _by_name(manifest.inputs, model.inputs),
            _by_name(manifest.outputs, model.outputs), tuple(pieces.tensors.values()),
            tuple(SharedLevel(each.tensors, each.num_rows, each.is_whole) for each in pieces.levels.levels),
            tuple(writer.entries), entries,
        )  # fmt: skip
        validate_collaboration(found.to_json())
        write_collaboration(made, found)
    return target


def _by_name(specs: Sequence[TensorSpec], names: Sequence[str]) -> tuple[TensorSpec, ...]:
    known = {spec.name: spec for spec in specs}
    return tuple(known[name] for name in names)


def _variant(manifest: Manifest, model: ModelGraph) -> Variant:
    """Return the variant of a bundle that was cut from a graph."""
    if manifest.model_sha256 != model.source_sha256:
        raise UsageError("the bundle is of another model; make one of this model by 'splitload train'")
    for variant in manifest.variants:
        if variant.kind == model.kind:
            return variant
    raise UsageError(f"the bundle has no {model.kind} variant, which its collaboration would read; make it again")


class _Writer:
    """Writes graphs, each once.

    Attributes:
        entries: Of those written so far.
    """

    def __init__(self, folder: Path, bundle: Path, variant: Variant, model: ModelGraph, pieces: Pieces) -> None:
        self._folder, self._model, self._pieces = folder, model, pieces
        self._held = HeldWeights(0)
        for stage in variant.stages:
            if stage.graph.name.endswith(".ort"):
                self._held.add_ort(bundle / stage.graph.name, model.weights_bytes)
        self._numbers: dict[Compute, int] = {}
        self.entries: list[PieceEntry] = []

    def plan(self, planned: Planned) -> PlanEntry:
        """Write the graphs of a plan and return what the manifest says of it."""
        shared = self._arm(SHARED, planned.plan, planned.predicted_s)
        others = (self._arm(name, *each) for name, each in planned.baselines.items())
        return PlanEntry(planned.bytes_per_s, (shared, *others))

    def _arm(self, name: str, plan: SharedPlan, predicted_s: float) -> ArmEntry:
        both = programs(self._pieces.levels, plan)
        return ArmEntry(name, predicted_s, *(tuple(map(self._step, steps)) for steps in both))

    def check_size(self, manifest: Manifest) -> None:
        """Raise unless the graphs are small beside the bundle, whose weights they read."""
        own = sum(entry.graph.bytes for entry in self.entries)
        of_bundle = sum(file.bytes for file in {file.name: file for file in manifest.files()}.values())
        if own > max(MOST_BESIDE * of_bundle, SMALL_BYTES):
            raise UsageError(
                f"the graphs of this collaboration would take {own} bytes beside a bundle of {of_bundle}: its weights "
                "are not stored as they are read; make the bundle again by 'splitload train --device host'"
            )

    def _step(self, step: Step) -> ProgramStep:
        if isinstance(step, Compute):
            if step not in self._numbers:
                self._numbers[step] = len(self.entries)
                self.entries.append(self._piece(self._pieces.of(step)))
            return ProgramStep("compute", self._numbers[step], ())
        parts = _parts(self._pieces.levels.parts(step.level, step.rows))
        return ProgramStep("send" if isinstance(step, Send) else "receive", step.level, parts)

    def _piece(self, piece: ComputedPiece) -> PieceEntry:
        data = self._on_bundle(piece.model)
        sha256 = hashlib.sha256(data).hexdigest()
        file = File(f"{sha256[:16]}.onnx", len(data), sha256)
        (self._folder / file.name).write_bytes(data)
        return PieceEntry(file, *(_parts(each) for each in (piece.reads, piece.gives)))

    def _on_bundle(self, model: Any) -> bytes:
        """Return a graph whose weights are those of the bundle's files; what these have not is in it."""
        own: Any = type(model)()
        own.CopyFrom(model)
        elsewhere = [tensor for tensor in own.graph.initializer if is_external(tensor)]
        before = {tensor.name: list(tensor.external_data) for tensor in elsewhere}
        self._held.share(elsewhere, always=True)
        for tensor in elsewhere:
            if list(tensor.external_data) == before[tensor.name]:
                data = raw_bytes(tensor, self._model.path.parent)
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
                tensor.raw_data = data
        return bytes(own.SerializeToString())


def _parts(rows: Mapping[str, Any]) -> tuple[Part, ...]:
    return tuple(Part(name, 0, None) if each is None else Part(name, *each) for name, each in rows.items())
