"""The format of a bundle's manifest, the whole of it: everything that is read has passed here.

FORMAT.md carries the format in prose.
"""

from __future__ import annotations

import math
from itertools import pairwise

from splitload.base.errors import BundleError
from splitload.base.fields import Reader, is_count
from splitload.base.sealed import KEY
from splitload.bundle.manifest import (
    FORMAT,
    LOSSES,
    MANIFEST,
    MEMORY_OF_STAGE,
    OPTIMIZERS,
    OUTPUT_KINDS,
    READABLE,
    TORCH_FORMAT,
    Canary,
    File,
    Manifest,
    Metadata,
    Needs,
    StageEntry,
    Step,
    TensorSpec,
    Training,
    Variant,
    Weight,
)  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_STAGES = 1024
MAX_CANARY_BYTES = 1 << 20
MAX_ORT_BYTES = (1 << 31) - 1  # of an .ort file: flatbuffers' own check takes no larger one
_MAX_NAME = 128  # characters


def validate(data: Any) -> Manifest:
    """Check parsed JSON against the whole format and return the manifest.

    Raises:
        BundleError: With the first thing that is wrong and where.
    """
    top = Reader(data, "manifest")
    if top.data.get("format") == TORCH_FORMAT:
        raise BundleError("the bundle is of a torch module; splitload.torch.load(module, bundle) loads it")
    if top.data.get("format") != FORMAT:
        raise BundleError(f"the manifest is not a splitload bundle's: format is {top.data.get('format')!r}")
    if not is_count(top.data.get("version")) or top.data["version"] not in READABLE:
        raise BundleError(
            f"the bundle has version {top.data.get('version')!r}, this splitload reads versions "
            f"{', '.join(map(str, READABLE[:-1]))} and {READABLE[-1]}; make it again or update splitload"
        )
    top.only("format", "version", *own_hash(top), *Manifest._fields)
    manifest = Manifest(
        model=top.text("model"),
        model_sha256=top.sha256("model_sha256"),
        model_bytes=top.count("model_bytes"),
        created_with={key: str(value) for key, value in top.mapping("created_with").items()},
        cpu=top.text("cpu"),
        device=top.text("device"),
        plan=top.mapping("plan"),
        inputs=tuple(tensor_spec(item) for item in top.items("inputs")),
        outputs=tuple(tensor_spec(item) for item in top.items("outputs", at_least=1)),
        variants=tuple(_variant(item) for item in top.items("variants", at_least=1)),
        training=_training(top.child("training")) if "training" in top.data else None,
        metadata=_metadata(top.child("metadata")) if "metadata" in top.data else None,
        model_data=_data_files(top) if "model_data" in top.data else None,
    )
    for what, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        if len({spec.name for spec in specs}) < len(specs):
            raise BundleError(f"manifest.{what} has a name twice: {[spec.name for spec in specs]}")
    for number, variant in enumerate(manifest.variants):
        _check_flow(manifest, variant, f"variants[{number}]")
    files = {file.name for file in manifest.files()}
    for variant in manifest.variants:
        for stage in variant.stages:
            if missing := [name for name in stage.shares if name not in files]:
                raise BundleError(f"stage '{stage.name}' shares weights of {missing}, which is no file of the bundle")
    if manifest.training is not None:
        _check_training(manifest, manifest.training)
    last = manifest.variants[-1]
    if last.cpu is not None or last.runtime is not None or last.needs is not None:
        raise BundleError("manifest.variants: the last one must fit every processor and runtime version")
    return manifest


def own_hash(top: Reader) -> tuple[str, ...]:
    """Return the key of a manifest's own hash, which manifests of version 1 must not have."""
    return () if top.get("version") == 1 else (KEY,)


def _variant(reader: Reader) -> Variant:
    reader.only(*Variant._fields)
    return Variant(
        kind=reader.choice("kind", "native", "portable"),
        cpu=reader.optional_text("cpu"),
        runtime=reader.optional_text("runtime"),
        threads=reader.count("threads", at_least=1),
        overlap=reader.flag("overlap"),
        stages=tuple(_stage(item) for item in reader.items("stages", at_least=1, at_most=MAX_STAGES)),
        needs=_needs(reader.child("needs")) if "needs" in reader.data else None,
        residency=_residency(reader) if "residency" in reader.data else None,
        arena_bytes=reader.count("arena_bytes") if "arena_bytes" in reader.data else None,
        input_bytes=reader.count("input_bytes") if "input_bytes" in reader.data else None,
    )


def _residency(reader: Reader) -> Any:
    value = reader.get("residency")
    if value != "stage" and not (is_count(value) and value):
        raise BundleError(f"{reader.where}.residency must be 'stage' or a count of at least 1, it is {value!r:.40}")
    return value


def _needs(reader: Reader) -> Needs:
    reader.only(*Needs._fields)
    return Needs(
        block=None if reader.get("block") is None else reader.count("block", at_least=1),
        operators=_names(reader, "operators"),
        ort_format=reader.optional_text("ort_format"),
        canary=_canary(reader.child("canary")) if "canary" in reader.data else None,
    )


def _canary(reader: Reader) -> Canary:
    reader.only(*Canary._fields)
    canary = Canary(graph=file_entry(reader.child("graph")), answers=file_entry(reader.child("answers")))
    if canary.answers.bytes % 8 or not 0 < canary.answers.bytes <= MAX_CANARY_BYTES >= canary.graph.bytes:
        raise BundleError(f"{reader.where} must be two files of at most {MAX_CANARY_BYTES} bytes, answers in pairs")
    return canary


def _stage(reader: Reader) -> StageEntry:
    reader.only(*StageEntry._fields)
    blocks = reader.sequence("blocks")
    if len(blocks) != 2 or not all(is_count(value) for value in blocks) or not blocks[0] < blocks[1]:
        raise BundleError(f"{reader.where}.blocks must be two rising counts, it is {blocks!r}")
    return StageEntry(
        name=reader.text("name"),
        blocks=(blocks[0], blocks[1]),
        graph=file_entry(reader.child("graph")),
        weights=None if reader.get("weights") is None else file_entry(reader.child("weights")),
        weights_bytes=reader.count("weights_bytes"),
        inputs=_names(reader, "inputs"),
        outputs=tuple(tensor_spec(item) for item in reader.items("outputs", at_least=1)),
        prepack=reader.flag("prepack"),
        trainable=reader.flag("trainable"),
        shares=_names(reader, "shares") if "shares" in reader.data else (),
        optimized=reader.flag("optimized", default=True),
        mapped=reader.flag("mapped", default=True),
        prefetch=reader.flag("prefetch", default=False),
        upgrade=reader.flag("upgrade", default=not reader.flag("prepack")),
        reoptimize=reader.flag("reoptimize", default=False),
        read_order=_read_order(reader) if "read_order" in reader.data else (),
        **{name: reader.count(name) for name in MEMORY_OF_STAGE if name in reader.data},
    )


def _read_order(reader: Reader) -> tuple[int, ...]:
    places = reader.sequence("read_order")
    size = min(reader.child("graph").count("bytes"), MAX_ORT_BYTES)
    if not all(is_count(place) and 0 < place <= size for place in places):
        raise BundleError(f"{reader.where}.read_order must be places in a file of {size} bytes")
    if any(place >= later for place, later in pairwise(places[:-1])):
        raise BundleError(f"{reader.where}.read_order must rise up to the last place, where reading ends")
    return tuple(places)


def _metadata(reader: Reader) -> Metadata:
    reader.only(*Metadata._fields)
    version = reader.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or not -(1 << 63) <= version < 1 << 63:
        raise BundleError(f"{reader.where}.version must be a whole number of 64 bits, it is {version!r:.40}")
    entries = reader.mapping("custom_metadata_map")
    if not all(isinstance(value, str) for value in entries.values()):
        raise BundleError(f"{reader.where}.custom_metadata_map must hold strings")
    texts = {name: reader.text(name) for name in Metadata._fields if name not in ("version", "custom_metadata_map")}
    return Metadata(**texts, version=version, custom_metadata_map=entries)


def _data_files(reader: Reader) -> tuple[str, ...]:
    from pathlib import PurePosixPath  # for the models that have such files

    names = _names(reader, "model_data")
    for name in names:
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            raise BundleError(f"{reader.where}.model_data '{name}' does not lie beside the model; refused")
    return names


def _training(reader: Reader) -> Training:
    reader.only(*Training._fields)
    weights, steps = [], []
    for row in reader.items("weights", at_least=1):
        row.only(*Weight._fields)
        shape = row.sequence("shape")
        if not all(is_count(size) for size in shape):
            raise BundleError(f"{row.where}.shape must be sizes, it is {shape!r}")
        weights.append(Weight(row.text("name"), tuple(shape), row.count("offset")))
    for row in reader.items("steps"):
        row.only(*Step._fields)
        loss = row.choice("loss", *LOSSES)
        optimizer = row.choice("optimizer", *OPTIMIZERS)
        steps.append(Step(loss, optimizer, file_entry(row.child("file"))))
    return Training(
        features=_names(reader, "features"),
        output=reader.text("output"),
        weights=tuple(weights),
        steps=tuple(steps),
        output_kind=reader.choice("output_kind", *OUTPUT_KINDS) if "output_kind" in reader.data else None,
        output_doubt=reader.text("output_doubt") if "output_doubt" in reader.data else None,
    )


def _check_training(manifest: Manifest, training: Training) -> None:
    """Check that every variant ends with the stage that is trained, and that its weights lie in its file."""
    tails = {(stage.graph, stage.weights, stage.inputs) for stage in (each.stages[-1] for each in manifest.variants)}
    if len(tails) > 1 or not all(variant.stages[-1].trainable for variant in manifest.variants):
        raise BundleError("manifest.training: every variant must end with the same trainable stage")
    (_, file, inputs), *_ = tails
    if set(training.features) != set(inputs):
        raise BundleError(f"manifest.training.features must be what the last stage reads, {list(inputs)}")
    if training.output not in [spec.name for spec in manifest.outputs]:
        raise BundleError(f"manifest.training.output '{training.output}' is no output of the model")
    if training.output_kind is None and any(step.loss == "binary-cross-entropy" for step in training.steps):
        raise BundleError("manifest.training has a step of binary-cross-entropy, and no output_kind")
    if len({weight.name for weight in training.weights}) < len(training.weights):
        raise BundleError("manifest.training.weights has a name twice")
    end = 0
    for weight in sorted(training.weights, key=lambda each: each.offset):
        if weight.offset < end:
            raise BundleError(f"manifest.training.weights: '{weight.name}' begins inside the one before it")
        end = weight.offset + 4 * math.prod(weight.shape)
    if file is None or end > file.bytes:
        raise BundleError(f"manifest.training.weights end at byte {end}, behind the weights of the last stage")


def _names(reader: Reader, key: str) -> tuple[str, ...]:
    names = reader.sequence(key)
    if not all(isinstance(name, str) for name in names):
        raise BundleError(f"{reader.where}.{key} must be names, it is {names!r}")
    return tuple(names)


def is_plain(name: str) -> bool:
    """Return whether a name is of letters, digits, dots, dashes and underscores, with a letter or digit first."""
    known = all(char.isalnum() or char in "._-" for char in name)  # compiling a pattern takes longer than all names
    return known and name.isascii() and 0 < len(name) <= _MAX_NAME and name[0].isalnum()


def file_entry(reader: Reader) -> File:
    """Return the description of a file, whose name is a plain one."""
    reader.only("name", "bytes", "sha256")
    name = reader.text("name")
    if not is_plain(name) or name == MANIFEST:
        raise BundleError(f"{reader.where}.name '{name}' is not a plain file name; refused")
    return File(name, reader.count("bytes"), reader.sha256("sha256"))


def tensor_spec(reader: Reader) -> TensorSpec:
    """Return the description of a tensor."""
    reader.only("name", "type", "shape")
    shape = reader.get("shape")
    if shape is not None and not (
        isinstance(shape, list) and all(size is None or isinstance(size, str) or is_count(size) for size in shape)
    ):
        raise BundleError(f"{reader.where}.shape must be a list of sizes, names and nulls, it is {shape!r}")
    return TensorSpec(reader.text("name"), reader.text("type"), None if shape is None else tuple(shape))


def _check_flow(manifest: Manifest, variant: Variant, where: str) -> None:
    """Check that blocks are contiguous, and that every tensor is made once and before it is read."""
    known = {spec.name for spec in manifest.inputs}
    end = 0
    for number, stage in enumerate(variant.stages):
        if stage.blocks[0] != end:
            raise BundleError(f"{where}.stages[{number}] starts at block {stage.blocks[0]}, expected {end}")
        end = stage.blocks[1]
        if missing := [name for name in stage.inputs if name not in known]:
            raise BundleError(f"{where}.stages[{number}] reads {missing}, which no earlier stage makes")
        for spec in stage.outputs:
            if spec.name in known:
                raise BundleError(f"{where}.stages[{number}] makes '{spec.name}', which is there already")
            known.add(spec.name)
    if missing := [spec.name for spec in manifest.outputs if spec.name not in known]:
        raise BundleError(f"{where}: no stage makes the model's outputs {missing}")
