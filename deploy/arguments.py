"""How a tail is trained: the settings, and the words of the command line that set them."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from splitload.base.errors import UsageError
from splitload.bundle.manifest import DEFAULT_TAIL

TARGET = "y"  # what classes or wanted outputs are called in a file of samples, unless it is said otherwise
LEARNING_RATES = {"sgd": 0.01, "adam": 0.001}  # where none is given


@dataclass(frozen=True, slots=True)
class Settings:
    """How a tail is trained.

    Attributes:
        epochs: Times that all samples are gone through, at most.
        batch_size: Samples of a step.
        optimizer: "adam" or "sgd".
        learning_rate: None for the optimiser's own, `LEARNING_RATES`.
        momentum: Of "sgd".
        weight_decay: Share of each weight that is added to its gradient.
        patience: Epochs without a smaller loss after which training ends; the loss is that of the validation samples,
            or of the training samples where there are none.
        seed: Of the order of the samples.
        loss: "cross-entropy", "binary-cross-entropy" or "mse"; None: where targets are whole numbers or bools,
            the one of classes that fits the output, otherwise "mse".
    """

    epochs: int = 20
    batch_size: int = 32
    optimizer: str = "adam"
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    patience: int = 5
    seed: int = 0
    loss: str | None = None

    @property
    def rate(self) -> float:
        """The learning rate, the optimiser's own where none is given."""
        return LEARNING_RATES[self.optimizer] if self.learning_rate is None else self.learning_rate

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UsageError(f"{name} must be a whole number of at least 1, it is {getattr(self, name)!r}")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise UsageError(f"seed must be a whole number, not negative; it is {self.seed!r}")
        if self.optimizer not in LEARNING_RATES:
            raise UsageError(f"optimizer must be one of {sorted(LEARNING_RATES)}, it is {self.optimizer!r}")
        for name in ("learning_rate", "momentum", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} must be a finite number, not negative; it is {value!r}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is personalized, and how, to a parser."""
    defaults = Settings()
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle that was built with --trainable")
    parser.add_argument(
        "--data", metavar="FILE.npz", help='an array for each input (or "x"), and "y": classes or outputs'
    )
    parser.add_argument("--valid", metavar="FILE.npz", help="the same, of samples that are not trained on")
    parser.add_argument("--tail", default=DEFAULT_TAIL, metavar="NAME", help="whose last stage (default: %(default)s)")
    parser.add_argument("--revert", action="store_true", help="go back to the version before, and train nothing")
    parser.add_argument(
        "--epochs", type=int, default=defaults.epochs, metavar="N", help="at most (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=defaults.batch_size, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument("--optimizer", default=defaults.optimizer, help="adam or sgd (default: %(default)s)")
    parser.add_argument(
        "--lr", type=float, metavar="RATE", help="learning rate (default: 0.001 for adam, 0.01 for sgd)"
    )
    parser.add_argument("--momentum", type=float, default=defaults.momentum, help="of sgd (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=defaults.weight_decay, help="(default: %(default)s)")
    parser.add_argument(
        "--patience", type=int, default=defaults.patience, metavar="N",
        help="epochs without a smaller loss after which training ends (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=defaults.seed, help="of the order of samples (default: %(default)s)"
    )
    parser.add_argument(
        "--labels", default=TARGET, metavar="NAME",
        help="what the array of classes or outputs is called in the files (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--loss",
        help="cross-entropy, binary-cross-entropy or mse (default: of whole numbers the one of classes that fits the "
        "output, otherwise mse)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="loading threads (default: as the bundle says)")


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that the arguments of `add_arguments` mean.

    Raises:
        UsageError: If one cannot be meant.
    """
    return Settings(
        epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer=options.optimizer,
        learning_rate=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        patience=options.patience,
        seed=options.seed,
        loss=options.loss,
    )
