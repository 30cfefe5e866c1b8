"""What the unsplit original gives for some samples: losses are compared with it, so that no check shares a mistake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitload.base.errors import ModelError, SplitloadError
from splitload.bundle.manifest import Loss, OutputKind
from splitload.frontends.onnx import Source
from splitload.graphs.observe import one_line, plain_options
from splitload.graphs.read import parse_model
from splitload.runtime.inputs import example_inputs
from splitload.runtime.stock import session_beside, stock_session
from splitload.training.opened import Opened

SAMPLES = 4  # made up, where inputs are
_LEAST = 1e-5  # smaller probabilities are no measure: float32 and limits for a logarithm change them
_TOLERANCE = 1e-3  # of the loss, or of 1
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Some samples.

    Attributes:
        features: What the trained part reads, by name, of shape `(samples, …)`.
        outputs: What the original gives, of shape `(samples, …)`.
    """

    features: dict[str, Array]
    outputs: Array

    def features_of(self, rows: Array) -> dict[str, Array]:
        """Return the features of some of them."""
        return {name: each[rows] for name, each in self.features.items()}


def seen(source: Source, opened: Opened, output: str, feeds: Mapping[str, Any]) -> Seen:
    """Run the original on samples, and what is frozen of it on the same.

    Args:
        source: The original model.
        opened: The same, divided; its weights are the original's.
        output: Which output.
        feeds: Inputs; made up where they are missing, several times.

    Raises:
        ModelError: If the original does not run on them, or a feature has no entry for each sample.
    """
    names = list(opened.division.features)
    try:
        session = stock_session(str(source.path), plain_options())
        given = all(each.name in feeds for each in session.get_inputs())
        batches = [example_inputs(session.get_inputs(), feeds, seed) for seed in range(1 if given else SAMPLES)]
        outputs = [session.run([output], each)[0] for each in batches]
        del session  # two models at a time are too many
        session = _frozen(opened)
        inputs = [each.name for each in session.get_inputs()]
        features = []
        for ready in batches:
            made = [name for name in names if name not in ready]
            found = session.run(made, {name: ready[name] for name in inputs}) if made else []
            values = {**ready, **dict(zip(made, found, strict=True))}
            features.append([np.asarray(values[name]) for name in names])
    except SplitloadError as error:
        raise ModelError(str(error)) from error
    except Exception as error:  # onnxruntime has no common root for its errors
        raise ModelError(f"the model does not run on these inputs: {one_line(error)}") from error
    if not all(isinstance(each, np.ndarray) for each in outputs):
        raise ModelError(f"its output '{output}' is no array")
    sizes = [{each.shape[:1] for each in (made, *row)} for made, row in zip(outputs, features, strict=True)]
    if any(len(each) > 1 or () in each for each in sizes):
        raise ModelError("what is trained reads values that are not of the samples")
    columns = (np.concatenate(column) for column in zip(*features, strict=True))
    return Seen(dict(zip(names, columns, strict=True)), np.concatenate(outputs))


def _frozen(opened: Opened) -> Any:
    """Return a session of the divided model that gives the features too."""
    import onnx

    model = parse_model(opened.graph.path)
    given = {value.name for value in (*model.graph.output, *model.graph.input)}
    model.graph.output.extend(onnx.ValueInfoProto(name=each) for each in opened.division.features if each not in given)
    return session_beside(opened.graph.path.parent, model.SerializeToString(), plain_options())


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A loss that the original has.

    Attributes:
        rows: Of which samples.
        target: For which target.
        loss: What it is.
    """

    rows: Array
    target: Array
    loss: float

    def check(self, found: float) -> None:
        """Raise unless a loss is the same.

        Raises:
            ModelError: If it is not.
        """
        if not abs(found - self.loss) <= _TOLERANCE * max(1.0, abs(self.loss)):
            raise ModelError(
                f"the loss in training is {found:.6g}, that of the unsplit model's outputs {self.loss:.6g}"
            )


def wanted_losses(loss: Loss, outputs: Array, kind: OutputKind | None) -> Iterator[Wanted]:
    """Yield losses of the original's outputs, worked out here in double precision, for several targets.

    Args:
        loss: Which.
        outputs: Of shape `(samples, …)`.
        kind: What they are.
    """
    values = outputs.astype(np.float64)
    everyone = np.arange(len(values))
    if loss == "mse":
        target = np.random.default_rng(2).standard_normal([*values.shape]).astype(np.float32)
        yield Wanted(everyone, target, float(((values - target) ** 2).mean()))
        return
    rows = values.reshape(len(values), -1)
    if loss == "binary-cross-entropy":
        chances = rows if kind == "probabilities" else 1 / (1 + np.exp(-rows))
        chances = np.concatenate([1 - chances, chances], axis=1)
    elif kind == "probabilities":
        chances = rows
    else:
        powers = np.exp(rows if kind == "log-probabilities" else rows - rows.max(1, keepdims=True))
        chances = powers if kind == "log-probabilities" else powers / powers.sum(1, keepdims=True)
    order = np.argsort(-chances, axis=1)
    for place in range(min(3, order.shape[1])):
        classes = order[:, place]
        of_class = chances[everyone, classes]
        picked = everyone[of_class >= _LEAST]
        if len(picked):
            yield Wanted(picked, classes[picked].astype(np.int64), float(-np.log(of_class[picked]).mean()))
