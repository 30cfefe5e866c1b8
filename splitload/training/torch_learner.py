"""Trains the last stage of a bundle in torch: what `finetune` falls back to where no step could be exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splitload.base.errors import ModelError
from splitload.bundle.manifest import Loss, OutputKind, StageEntry, Training
from splitload.frontends.torch_packages import require
from splitload.graphs.observe import one_line, plain_options
from splitload.graphs.read import read_whole
from splitload.runtime.stock import stock_session
from splitload.training.losses import losses_for
from splitload.training.original import Seen, Wanted, wanted_losses
from splitload.training.torch_graph import run_graph, tensors_of
from splitload.training.torch_loss import kind_of, loss_of

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]
_TOLERANCE = 1e-4  # of the largest output


class TorchLearner:
    """The weights of a tail, and torch's optimiser that changes them; see `deploy.personalize.Learner`.

    The last stage is run node by node in torch. One that takes a single sample is run sample by sample.

    Args:
        folder: The bundle.
        stage: Its last stage.
        training: What is trained.
        loss: "cross-entropy", "binary-cross-entropy" or "mse".
        weights: To begin with.
        optimizer: "adam" or "sgd".
        learning_rate: Of it.
        momentum: Of "sgd".
        weight_decay: Share of each weight that is added to its gradient.

    Raises:
        MissingPackageError: If torch is not installed.
        ModelError: If the last stage holds an operator that cannot be run in torch.
    """

    def __init__(
        self,
        folder: Path,
        stage: StageEntry,
        training: Training,
        loss: Loss,
        weights: Mapping[str, Array],
        *,
        optimizer: str,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        require("torch")
        import torch

        self._graph, self._constants = read_tail(folder / stage.graph.name)
        self._weights = {
            name: torch.from_numpy(np.array(value)).requires_grad_(True) for name, value in weights.items()
        }
        self._loss = loss
        self._output, self.output_kind = training.output, training.output_kind
        self._together: bool | None = None
        self.learning_rate = learning_rate
        given: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
        tensors = list(self._weights.values())
        self._optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(tensors, **given)
            if optimizer == "adam"
            else torch.optim.SGD(tensors, momentum=momentum, **given)
        )

    def step(self, features: Mapping[str, Array], target: Array) -> float:
        """Change the weights by one batch, and return its loss before that."""
        import torch

        loss, _ = self._run(features, target)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()
        return float(loss.detach())

    def look(
        self, features: Mapping[str, Array], target: Array, weights: Mapping[str, Array] | None = None
    ) -> tuple[float, Array]:
        """Return the loss and the output of a batch, by other weights where they are given; nothing changes."""
        import torch

        others = None if weights is None else {name: torch.from_numpy(np.array(each)) for name, each in weights.items()}
        with torch.no_grad():
            loss, output = self._run(features, target, others)
        return float(loss), output.numpy()

    def weights(self) -> dict[str, Array]:
        """Return the weights as they are, by name."""
        return {name: weight.detach().numpy().copy() for name, weight in self._weights.items()}

    def _run(
        self, features: Mapping[str, Array], target: Array, weights: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return loss and output of a batch."""
        import torch

        wanted = torch.from_numpy(np.array(target))
        if wanted.is_floating_point():
            wanted = wanted.float()
        tensors = {name: torch.from_numpy(np.array(each)) for name, each in features.items()}
        if self._together is None and len(wanted) > 1:
            self._together = self._takes_many(tensors)
        parts = [slice(None)] if self._together else [slice(row, row + 1) for row in range(len(wanted))]
        known = [self._known({name: each[part] for name, each in tensors.items()}, weights) for part in parts]
        output = torch.cat([values[self._output] for values in known])
        if self.output_kind is None and self._loss == "binary-cross-entropy":
            self.output_kind = self._told(known[0], output)
        taken = [
            loss_of(self._graph, values, self._output, self._loss, wanted[part], self.output_kind)
            for values, part in zip(known, parts, strict=True)
        ]
        return torch.stack(taken).mean(), output

    def _told(self, known: Mapping[str, torch.Tensor], output: torch.Tensor) -> OutputKind:
        """Return what the output is, which bundles of version 1 do not say.

        Raises:
            ModelError: If neither its values nor the graph tell.
        """
        kind, doubt = kind_of(self._graph, known, self._output, output)
        if doubt is not None:
            raise ModelError(
                f"the bundle does not say whether its output '{self._output}' holds logits or probabilities, and "
                f"nothing else tells: {doubt}; make it again with 'splitload train'"
            )
        return kind

    def _known(
        self, features: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        return run_graph(self._graph, {**self._constants, **(weights or self._weights), **features})

    def _takes_many(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Return whether two samples at once give what they give one by one."""
        import torch

        with torch.no_grad():
            single = [
                self._known({name: each[row : row + 1] for name, each in tensors.items()})[self._output]
                for row in range(2)
            ]
            expected = torch.cat(single)
            try:
                found = self._known({name: each[:2] for name, each in tensors.items()})[self._output]
            except (RuntimeError, ModelError, ValueError, IndexError):  # sizes that fit one sample only
                return False
            return found.shape == expected.shape and bool(
                (found - expected).abs().max() <= _TOLERANCE * expected.abs().max()
            )


def read_tail(file: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the graph of a last stage, and its constants and weights as tensors.

    Raises:
        ModelError: If the file cannot be read.
    """
    import torch

    model = read_whole(file)
    return model.graph, tensors_of(model.graph, torch.float32)


def check_in_torch(
    file: Path,
    output: str,
    weights: Sequence[str],
    examples: Mapping[str, Array],
    samples: Seen | None,
    kind: OutputKind | None,
) -> None:
    """Make sure that torch computes what onnxruntime does for one sample of a last stage, and can train it.

    Args:
        file: The last stage.
        output: Its output.
        weights: What is trained.
        examples: One sample of what it reads.
        samples: Some of what the unsplit model gives, whose losses must be torch's; None where it could not be run.
        kind: What the output is taken as.

    Raises:
        ModelError: If it does not, an operator cannot be run there, or the output does not change with a weight.
    """
    import torch

    graph, constants = read_tail(file)
    try:
        session = stock_session(str(file), plain_options())
        (expected,) = session.run([output], dict(examples))
    except Exception as error:  # onnxruntime has no common root for its errors
        raise ModelError(f"what is trained does not run on made-up features: {one_line(error)}") from error
    try:
        for name in weights:
            constants[name].requires_grad_(True)
        known = run_graph(graph, constants | {name: torch.from_numpy(each) for name, each in examples.items()})
        torch.autograd.grad(known[output].sum(), [constants[name] for name in weights])
    except ModelError:
        raise
    except Exception as error:  # torch has no common root for its errors
        raise ModelError(f"what is trained cannot be trained in torch: {one_line(error)}") from error
    found = known[output].detach().numpy()
    if found.shape != expected.shape or not np.abs(found - expected).max() <= _TOLERANCE * np.abs(expected).max():
        raise ModelError("what is trained gives something else in torch than in onnxruntime")
    if samples is None:
        return
    for loss in losses_for(("samples", *found.shape[1:])):
        for one in wanted_losses(loss, samples.outputs, kind):
            with torch.no_grad():
                one.check(_mean_loss(graph, constants, output, loss, samples, one, kind))


def _mean_loss(
    graph: Any,
    constants: Mapping[str, torch.Tensor],
    output: str,
    loss: Loss,
    samples: Seen,
    wanted: Wanted,
    kind: OutputKind | None,
) -> float:
    """Return the mean of the losses of some samples, run one by one."""
    import torch

    losses = []
    for place, row in enumerate(wanted.rows):
        features = {name: torch.from_numpy(each) for name, each in samples.features_of(np.array([row])).items()}
        target = torch.from_numpy(wanted.target[place : place + 1])
        losses.append(float(loss_of(graph, run_graph(graph, {**constants, **features}), output, loss, target, kind)))
    return float(np.mean(losses))
