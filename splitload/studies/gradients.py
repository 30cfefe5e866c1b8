"""Gradients of exported training steps beside autograd's: `python -m splitload.studies.gradients`.

For trainable layers of every zoo model: as a device computes them (single precision, onnxruntime), and in double
precision, each beside torch's autograd in double precision, on made-up features and targets.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.cache import user_cache
from splitload.base.errors import UsageError
from splitload.commands.console import Console
from splitload.frontends import open_source
from splitload.studies.records import write_record
from splitload.studies.study import errors_in_one_line, study_parser
from splitload.training.gradient_check import ZERO, autograd, exported, on_a_device
from splitload.training.losses import losses_for
from splitload.training.opened import load_opened
from splitload.training.training import CHECKED_SAMPLES, example_target, opened_tail

TAILS = {
    "zoo:mobilenet_v1": "block13|fc",
    "zoo:squeezenet1_1": r"features\.12|classifier",
    "zoo:resnet152": r"layer4\.2|fc",
    "zoo:densenet201": r"features\.denseblock4\.denselayer32|features\.norm5|classifier",
    "zoo:inception_v3": "Mixed_7c|fc",
    "zoo:vgg19": "classifier",
    "zoo:convnext_tiny": r"features\.7\.2|classifier",
    "zoo:distilbert": r"layer\.5|pre_classifier|classifier",
    "zoo:lowlight": r"merge\.3|out",
}


def rows_of(model: str, trainable: str, cache: Path) -> list[dict[str, Any]]:
    """Return what the record holds of a model: a row for each loss that fits.

    Differences are norms, as shares of the norm of autograd's gradient of the weight; where that is zero but for
    rounding, of the largest norm of any weight.

    Raises:
        SplitloadError: If the model cannot be read, or trained so.
    """
    source = open_source(model, cache)
    opened = load_opened(source, "portable", cache, trainable)
    tail, feeds, shape = opened_tail(opened)
    weights = opened.division.weights
    rows = []
    for loss in losses_for(shape):
        target = example_target(loss, shape, CHECKED_SAMPLES)
        wanted = autograd(tail, weights, loss, feeds, target)
        norms = {name: float(np.linalg.norm(each)) for name, each in wanted.items()}
        most = max(norms.values())
        scales = {name: norm if norm > ZERO * most else most for name, norm in norms.items()}
        apart = {
            kind: {
                name: float(np.linalg.norm(each - wanted[name])) / scales[name]
                for name, each in way(tail, weights, loss, feeds, target).items()
            }
            for kind, way in (("float32", on_a_device), ("float64", exported))
        }
        rows.append(
            {
                "model": model,
                "model_sha256": source.sha256,
                "trainable": trainable,
                "operators": sorted({node.op_type for node in tail.graph.node}),
                "loss": loss,
                "samples": CHECKED_SAMPLES,
                "without_effect": [name for name, norm in norms.items() if norm <= ZERO * most],
                "difference": apart,
            }
        )
    return rows


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Compare the gradients of each model's last layers, and write a record."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("gradients", __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(TAILS)} (default: all)")
    options = parser.parse_args(words)
    console = Console(json=False)
    rows = []
    for model in options.models:
        if model not in TAILS:
            raise UsageError(f"no trainable layers are chosen for '{model}'; give some of {', '.join(TAILS)}")
    for model in options.models or TAILS:
        with console.status(f"comparing gradients of {model}"):
            made = rows_of(model, TAILS[model], user_cache())
        for row in made:
            worst = {kind: max(each.values()) for kind, each in row["difference"].items()}
            console.print(
                f"{model}, {row['loss']}, {len(row['difference']['float32'])} weights: at most {worst['float32']:.1e} "
                f"of the norm apart on a device, {worst['float64']:.1e} in double precision"
            )
        rows += made
    if options.output:
        write_record(options.output, "gradients", "splitload.studies.gradients", words, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
