"""What trains the tail of a bundle on a device: its training steps, for many samples at once, checked and written."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.errors import ModelError
from splitload.base.regular import copy_checked
from splitload.bundle.manifest import OPTIMIZERS, File, Loss, OutputKind, StageEntry, Step, Training, Weight
from splitload.frontends.onnx import Source
from splitload.frontends.torch_packages import require
from splitload.graphs.proto import external_entry
from splitload.graphs.read import parse_model
from splitload.training.gradient_check import check_gradients, losses_on_a_device
from splitload.training.losses import losses_for
from splitload.training.open_samples import open_samples
from splitload.training.opened import Opened
from splitload.training.original import Seen, seen, wanted_losses
from splitload.training.output_kind import judged
from splitload.training.torch_learner import check_in_torch
from splitload.training.training_step import at_opset, constants_of, shapes_of, training_step

CHECKED_SAMPLES = 2


def write_training(
    opened: Opened, source: Source, feeds: Mapping[str, Any], folder: Path, tail: StageEntry
) -> tuple[Training, str | None]:
    """Write the training steps of a bundle's last stage into its folder, each checked first.

    There is one for each optimiser and each loss that fits the output: "mse" always, "cross-entropy" where it is of
    shape (samples, classes), "binary-cross-entropy" where it is one unit. Gradients are compared with torch's autograd,
    and losses with those of the unsplit model's own outputs, where that can be run. Where a step cannot be exported
    there is none, if torch itself can train the stage.

    Args:
        opened: The model.
        source: The same, unsplit.
        feeds: Inputs to run it on; made up where they are missing.
        folder: The bundle's.
        tail: Its last stage, written there.

    Returns:
        How it is trained; and why there are no steps, None if there are.

    Raises:
        ModelError: If the tail cannot be trained: the operator, layer or value that is in the way is named.
        MissingPackageError: If torch is not installed.
    """
    import onnx

    require("torch")
    model = onnx.load_model(str(opened.tail), format="protobuf")
    if len(model.graph.output) != 1:
        raise ModelError(
            f"a model of {len(model.graph.output)} outputs cannot be trained by one loss; it must have one"
        )
    examples = example_features(model)
    weights = opened.division.weights
    output = model.graph.output[0].name
    samples, unseen = None, None
    try:
        samples = seen(source, opened, output, feeds)
    except ModelError as error:
        unseen = f"not compared with the unsplit model's outputs: {error}"
    kind, doubt = _judged(model, samples)
    steps: list[Step] = []
    reason = None
    try:
        for step, data in _steps(opened, kind, samples):
            (folder / step.file.name).write_bytes(data)
            steps.append(step)
    except ModelError as error:
        reason = str(error)
        try:
            single = {name: each[0] for name, each in examples.items()}
            check_in_torch(folder / tail.graph.name, output, weights, single, samples, kind)
        except ModelError as other:
            raise ModelError(f"{reason}; nor can torch train it here: {other}") from error
        for step in steps:
            (folder / step.file.name).unlink()
        steps = []
    doubt = "; ".join(each for each in (doubt, unseen) if each) or None
    return Training(tail.inputs, output, _places(folder, tail, weights), tuple(steps), kind, doubt), reason


def _judged(model: Any, samples: Seen | None) -> tuple[OutputKind | None, str | None]:
    """Return what the output of a tail is taken as, and why that is in doubt; twice None where it tells no classes."""
    with contextlib.suppress(ModelError):
        model = at_opset(model)
    output = model.graph.output[0].name
    try:
        shapes = shapes_of(model)
    except ModelError:
        shapes = {}
    outputs = [] if samples is None else [samples.outputs]
    shape = shapes.get(output) or next((each.shape for each in outputs), ())
    if losses_for(shape) == ("mse",):
        return None, None
    kind, doubt = judged(model.graph, output, shapes.get, constants_of(model.graph), outputs)
    return kind, None if doubt is None else f"'{output}' is taken as {kind}: {doubt}"


def keep_training(old: Path, training: Training, folder: Path, tail: StageEntry) -> Training:
    """Take the training steps of a bundle over into one that is made of it; its last stage computes the same.

    Args:
        old: The bundle's folder.
        training: How its last stage is trained.
        folder: Where the new one is written.
        tail: Its last stage, written there.

    Raises:
        ModelError: If the new last stage reads something else.
    """
    if set(tail.inputs) != set(training.features):
        raise ModelError(f"the last stage reads {list(tail.inputs)}, its training steps {list(training.features)}")
    for step in training.steps:
        copy_checked(old / step.file.name, folder / step.file.name, step.file)
    names = tuple(weight.name for weight in training.weights)
    return training._replace(weights=_places(folder, tail, names))


def _places(folder: Path, tail: StageEntry, names: Sequence[str]) -> tuple[Weight, ...]:
    """Return where the trained weights lie in the weights file of a last stage."""
    stored = {tensor.name: tensor for tensor in parse_model(folder / tail.graph.name).graph.initializer}
    return tuple(Weight(name, tuple(stored[name].dims), external_entry(stored[name])[1]) for name in names)


def _steps(opened: Opened, kind: OutputKind | None, samples: Seen | None) -> Iterator[tuple[Step, bytes]]:
    """Yield each training step, and what its file holds."""
    weights = opened.division.weights
    model, features, shape = opened_tail(opened)
    for loss in losses_for(shape):
        check_gradients(model, weights, loss, features, example_target(loss, shape, CHECKED_SAMPLES), kind)
        if samples is not None:
            wanted = [*wanted_losses(loss, samples.outputs, kind)]
            batches = [(samples.features_of(one.rows), one.target) for one in wanted]
            for one, found in zip(wanted, losses_on_a_device(model, weights, loss, batches, kind), strict=True):
                one.check(found)
        for optimizer in OPTIMIZERS:
            data = training_step(model, weights, loss, optimizer, kind=kind).SerializeToString()
            sha256 = hashlib.sha256(data).hexdigest()
            yield Step(loss, optimizer, File(f"step-{loss}-{optimizer}-{sha256[:12]}.onnx", len(data), sha256)), data


def opened_tail(opened: Opened) -> tuple[Any, dict[str, np.ndarray[Any, Any]], Any]:
    """Return the tail as a model of any number of samples, made-up features of some, and the shape of its output.

    Raises:
        ModelError: If it takes one sample only.
    """
    import onnx

    model = onnx.load_model(str(opened.tail), format="protobuf")
    examples = example_features(model)
    model = open_samples(model, examples)
    output = model.graph.output[0].name
    shape = shapes_of(model).get(output)
    if shape is None:
        raise ModelError(f"the shape of the output '{output}' is not known; export the model with it")
    return model, {name: np.concatenate(each) for name, each in examples.items()}, shape


def example_features(model: Any) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Return made-up features of as many samples as are checked, by name; each of one sample.

    Raises:
        ModelError: If a size other than the number of samples is open.
    """
    from onnx import helper

    rng = np.random.default_rng(0)
    found = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        sizes = [1, *(dim.dim_value for dim in dims[1:])]
        if not dims or not all(sizes) or dims[0].dim_value > 1:
            raise ModelError(
                f"what is trained reads '{value.name}', whose first size must be 1 or open, for samples, and all "
                "others known; export the model with such inputs"
            )
        kind = value.type.tensor_type.elem_type
        dtype = helper.tensor_dtype_to_np_dtype(kind) if kind else np.dtype(object)
        if dtype.kind not in "biuf":
            raise ModelError(f"what is trained reads '{value.name}', which is no array of numbers that numpy knows")
        floating = np.issubdtype(dtype, np.floating)
        found[value.name] = [
            (rng.standard_normal(sizes) if floating else np.ones(sizes)).astype(dtype) for _ in range(CHECKED_SAMPLES)
        ]
    return found


def example_target(loss: Loss, shape: tuple[int | str, ...], samples: int) -> np.ndarray[Any, Any]:
    """Return made-up classes, or made-up outputs of a shape whose first size is that of the samples."""
    rng = np.random.default_rng(1)
    if loss != "mse":
        return rng.integers(0, int(shape[1]) if loss == "cross-entropy" else 2, samples)
    return rng.standard_normal([samples, *(int(size) for size in shape[1:])]).astype(np.float32)
