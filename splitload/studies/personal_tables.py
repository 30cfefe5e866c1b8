"""Tables of what personalization comes to: heads and rows, which `splitload.studies.records` sets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # the head, and the rows


def digits(records: Iterable[tuple[str, Any]]) -> Table:
    """Return the accuracy on samples never seen, by seed and in the mean, and the largest difference to PyTorch."""
    rows = [row for _, record in records for row in record["rows"]]
    differences = [row["difference"] for row in rows]
    columns = [_accuracies(row) for row in rows]
    body = [
        (str(row["seed"]), *map(_percent, each), _points(row["difference"]), f"{row['same_order_loss_difference']:.1e}")
        for row, each in zip(rows, columns, strict=True)
    ]
    means = [_percent(statistics.mean(column)) for column in zip(*columns, strict=True)]
    body.append(("mean", *means, _points(statistics.mean(differences)), "–"))
    body.append(("largest", *("–" for _ in means), _points(max(differences, key=abs)), "–"))
    head = ("seed", "before %", "splitload %", "PyTorch %", "PyTorch, same order %", "splitload − PyTorch, points")
    return (*head, "losses, same order, differ by"), body


def personalization(records: Iterable[tuple[str, Any]]) -> Table:
    """Return the time to the first step and the peak memory of each arm, and what splitload takes of that."""
    body = []
    for _, record in records:
        for row in record["rows"]:
            ours = row["medians"]["splitload"]
            for arm, taken in row["samples"].items():
                found = row["medians"][arm]
                cells = [f"{row['model']}, `{row['trainable']}`", arm]
                for key, scale, digits in _PERSONALIZATION:
                    values = [sample[key] * scale for sample in taken]
                    spread = f"({min(values):.{digits}f}–{max(values):.{digits}f})"
                    cells += [f"{found[key] * scale:.{digits}f} {spread}"]
                    cells += ["–" if arm == "splitload" else f"{ours[key] / found[key]:.2f}"]
                body.append((*cells, str(len(taken))))
    names = ("first step s", "after the imports s", "peak MiB to there", "peak MiB of the epoch")
    ratios = [(name, "splitload ÷ arm") for name in names]
    return ("model, trained", "arm", *(word for pair in ratios for word in pair), "n"), body


_PERSONALIZATION = (
    ("process_s", 1.0, 2),
    ("first_step_s", 1.0, 2),
    ("first_step_peak_bytes", 1 / (1 << 20), 0),
    ("epoch_peak_bytes", 1 / (1 << 20), 0),
)


def _accuracies(row: Mapping[str, Any]) -> tuple[float, ...]:
    names = ("splitload", "torch", "torch_same_order")
    return row["before"]["accuracy"], *(row["arms"][name]["accuracy"] for name in names)


def _percent(share: float) -> str:
    return f"{share * 100:.2f}"


def _points(difference: float) -> str:
    return f"{difference * 100:+.2f}"
