"""Losses in torch: what a training step's are checked against, and what torch itself trains by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from splitload.base.errors import ModelError
from splitload.bundle.manifest import Loss, OutputKind
from splitload.training.losses import LEAST, SAMPLES, losses_for
from splitload.training.output_kind import ShapeOf, Verdict, judged, source_of

if TYPE_CHECKING:
    import torch


def loss_of(
    graph: Any,
    known: Mapping[str, torch.Tensor],
    output: str,
    loss: Loss,
    target: torch.Tensor,
    kind: OutputKind | None = None,
) -> torch.Tensor:
    """Return the mean loss of an output, taken of what `training_step` takes it of.

    Args:
        graph: The graph.
        known: All its values.
        output: Name of the output.
        loss: Which.
        target: Classes or wanted outputs.
        kind: What the output is, None where only the graph tells.

    Raises:
        ModelError: If the loss does not fit the output.
    """
    import torch
    from torch.nn import functional

    if loss == "mse":
        return functional.mse_loss(known[output], target)
    if loss not in losses_for([SAMPLES, *known[output].shape[1:]]):
        raise ModelError(f"{loss} does not fit an output of shape {tuple(known[output].shape)}")

    source = source_of(graph, output, _shapes(known), _constants(known), kind)
    rows = known[source.value].reshape(len(target), -1)
    if loss == "cross-entropy":
        if source.kind == "logits":
            return functional.cross_entropy(rows, target)
        logs = rows if source.kind == "log-probabilities" else torch.log(torch.clamp(rows, min=LEAST))
        return functional.nll_loss(logs, target)
    wanted = target.to(rows.dtype)[:, None]
    if source.kind == "logits":
        return functional.binary_cross_entropy_with_logits(rows, wanted)
    yes, no = (torch.log(torch.clamp(each, min=LEAST)) for each in (rows, 1 - rows))
    return -(wanted * yes + (1 - wanted) * no).mean()


def kind_of(graph: Any, known: Mapping[str, torch.Tensor], output: str, values: torch.Tensor) -> Verdict:
    """Return what an output holds, by its values and by the graph; see `judged`.

    Args:
        graph: The graph.
        known: All its values, for one sample or more.
        output: Name of the output.
        values: What the output holds, for as many samples as there are.
    """
    return judged(graph, output, _shapes(known), _constants(known), [values.detach().numpy()])


def _shapes(known: Mapping[str, torch.Tensor]) -> ShapeOf:
    """Return a function that tells the shape of a value, whose first size counts samples."""
    return lambda name: (SAMPLES, *known[name].shape[1:]) if name in known and known[name].ndim else None


def _constants(known: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value.detach().numpy() for name, value in known.items() if value.ndim < 2 and value.numel() < 9}
