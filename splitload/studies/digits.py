"""Personalization of a real network on real digits, beside PyTorch: `python -m splitload.studies.digits --help`.

A network is trained on one part of the 1797 digits that ship with scikit-learn. Then a user comes whose digits look
otherwise, white on black and lying on their side, and whose names for them are a permutation of the ten. The bundle's
last layers are trained on what this user wrote, and so are the same layers in PyTorch, on the same samples in orders of
its own. Both are judged by samples that neither has seen. The seed decides which samples go where, the permutation, the
network's first weights and every order.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.errors import MissingPackageError, ModelError
from splitload.bundle.manifest import DEFAULT_TAIL
from splitload.commands.console import Console
from splitload.deploy.arguments import Settings
from splitload.deploy.personalize import personalize
from splitload.frontends.torch import export_module
from splitload.frontends.torch_packages import require
from splitload.measure.process import python
from splitload.runtime.loader import ParallelLoader
from splitload.studies.digits_networks import (
    CLASSES,
    Labelled,
    Tuned,
    Tuning,
    example,
    fine_tuned,
    predicted,
    pretrained,
    resized,
)
from splitload.studies.records import write_record
from splitload.studies.study import at_least, errors_in_one_line, study_parser

LAYERS = "conv3|fc1|fc2"
SPLIT = {"pretrain": 800, "train": 400, "valid": 150, "test": 447}  # samples
PRETRAINING: dict[str, Any] = {"epochs": 15, "batch_size": 32, "learning_rate": 1e-3}
TUNING = Tuning(epochs=100, batch_size=32, learning_rate=1e-3, patience=10)
Array = np.ndarray[Any, Any]


def load_digits() -> Labelled:
    """Return all digits, black on white from 1 to 0, in the order in which they ship.

    Raises:
        MissingPackageError: If scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingPackageError(
            f"the study needs the package 'scikit-learn' ({error}). Install it: pip install scikit-learn"
        ) from error
    images, classes = datasets.load_digits(return_X_y=True)
    return Labelled(1 - resized(images.reshape(-1, 8, 8) / 16), classes.astype(np.int64))


def parts_of(digits: Labelled, seed: int, split: dict[str, int]) -> tuple[dict[str, Labelled], list[int]]:
    """Return what is pretrained on and the user's samples, and which class the user calls each of the ten.

    Args:
        digits: All of them.
        seed: Decides which samples go where, and the permutation.
        split: How many samples each part has.
    """
    rng = np.random.default_rng(seed)
    names = rng.permutation(CLASSES)
    order = rng.permutation(len(digits.y))
    ends = np.cumsum(list(split.values()))
    parts = {}
    for (part, count), end in zip(split.items(), ends, strict=True):
        rows = order[end - count : end]
        x, y = digits.x[rows], digits.y[rows]
        if part != "pretrain":
            x, y = np.ascontiguousarray(np.rot90(1 - x, axes=(2, 3))), names[y]
        parts[part] = Labelled(x, y)
    return parts, names.tolist()


def row(
    digits: Labelled, seed: int, split: dict[str, int], pretraining: dict[str, Any], tuning: Tuning
) -> dict[str, Any]:
    """Pretrain, personalize the bundle, fine-tune in PyTorch, and return a row of the record.

    Raises:
        SplitloadError: If the bundle cannot be built or trained.
    """
    parts, names = parts_of(digits, seed, split)
    train, valid, test = (parts[part] for part in ("train", "valid", "test"))
    module = pretrained(parts["pretrain"], **pretraining, seed=seed)
    with tempfile.TemporaryDirectory(prefix="splitload-digits-") as made:
        folder = Path(made)
        bundle = _bundle(module, folder)
        files = {part: folder / f"{part}.npz" for part in ("train", "valid")}
        for part, file in files.items():
            np.savez(file, x=parts[part].x, y=parts[part].y)
        before = answers(bundle, test.x, None)
        result = personalize(
            bundle, files["train"], files["valid"], settings=Settings(optimizer="adam", seed=seed, **asdict(tuning))
        )
        ours = Tuned(
            answers(bundle, test.x, DEFAULT_TAIL),
            result.best.number,
            [epoch.loss for epoch in result.epochs if epoch.loss is not None],
            [epoch.valid_loss for epoch in result.epochs if epoch.valid_loss is not None],
        )
    given = (module, LAYERS, train, valid, test.x, tuning)
    theirs = fine_tuned(*given, orders(np.random.default_rng([seed, 1]), len(train.y)))
    same = fine_tuned(*given, orders(np.random.default_rng(seed), len(train.y)), fold=True)  # as `personalize` draws
    found = {"splitload": ours, "torch": theirs, "torch_same_order": same}
    return {
        "seed": seed,
        "samples": split,
        "pretraining": pretraining,
        "tuning": {"optimizer": "adam", **asdict(tuning)},
        "trainable": LAYERS,
        "names": names,
        "test_classes": test.y.tolist(),
        "before": {"accuracy": share(before, test.y), "predicted": before},
        "pretrained_on_its_own": {
            "accuracy": share(predicted(module, _as_pretrained(test.x)), np.argsort(names)[test.y])
        },
        "arms": {name: {"accuracy": share(each.predicted, test.y), **asdict(each)} for name, each in found.items()},
        "difference": share(ours.predicted, test.y) - share(theirs.predicted, test.y),
        "same_order_loss_difference": max(abs(a - b) / b for a, b in zip(ours.losses, same.losses, strict=False)),
    }


def answers(bundle: Path, images: Array, tail: str | None) -> list[int]:
    """Return the class that a bundle sees in each image, with a tail or None for the last stage as it was built."""
    with ParallelLoader(bundle, tail=tail, upgrade=False) as model:
        return [int(model.run(None, {"image": image[None]})[0].argmax()) for image in images]


def orders(rng: np.random.Generator, count: int) -> Iterator[Array]:
    """Yield the order of so many samples in each epoch."""
    while True:
        yield rng.permutation(count)


def share(found: Sequence[int], classes: Array) -> float:
    """Return the share of right classes."""
    return float(np.mean(np.array(found) == classes))


def _as_pretrained(images: Array) -> Array:
    """Return the user's images as those that the network was pretrained on look."""
    return np.ascontiguousarray(1 - np.rot90(images, -1, axes=(2, 3)))


def _bundle(module: Any, folder: Path) -> Path:
    """Export a network and build a bundle of it with `splitload train`, in a folder and with a cache of its own."""
    file, bundle = folder / "digits.onnx", folder / "digits.splitload"
    export_module(module, example(), file, name="the network of digits")
    words = ["train", str(file), "--device", "s20", "--trainable", LAYERS, "-o", str(bundle), "--json"]
    done = subprocess.run(
        python("splitload.cli", *words),
        env={**os.environ, "SPLITLOAD_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ModelError(f"the bundle of digits cannot be built: {' '.join(done.stderr.split())[-300:]}")
    return bundle


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Compare the personalized bundle with PyTorch for each seed, and write a record."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("digits", __doc__)
    parser.add_argument(
        "--seeds", type=at_least(1), default=5, metavar="N", help="seeds 0 to N-1 (default: %(default)s)"
    )
    options = parser.parse_args(words)
    console = Console(json=False)
    require("torch", "onnxscript")
    digits = load_digits()
    rows = []
    for seed in range(options.seeds):
        made = row(digits, seed, SPLIT, PRETRAINING, TUNING)
        arms = made["arms"]
        console.print(
            f"seed {seed}: accuracy {made['before']['accuracy']:.1%} before, splitload "
            f"{arms['splitload']['accuracy']:.1%}, PyTorch {arms['torch']['accuracy']:.1%}, difference "
            f"{made['difference'] * 100:+.2f} points; in the same order {arms['torch_same_order']['accuracy']:.1%}, "
            f"losses within {made['same_order_loss_difference']:.1e}"
        )
        rows.append(made)
    if options.output:
        write_record(options.output, "digits", "splitload.studies.digits", words, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
