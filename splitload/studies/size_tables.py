"""The table of sizes: heads and rows, which `splitload.studies.records` sets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # the head, and the rows


def sizes(records: Iterable[tuple[str, Any]]) -> Table:
    """Return bytes and times of each model beside those of its bundle, and the largest ratios of all."""
    found = [row for _, record in records for row in record["rows"]]
    made = [row for row in found if "failed" not in row]
    body = [_row(row) if "failed" not in row else (row["model"], row["form"], *["–"] * 8) for row in found]
    if made:
        largest = max(row["ratio"] for row in made)
        slowest = max(map(_of_stock, made))
        body.append(("largest", *["–"] * 3, f"{largest:.3f}", "–", "–", f"{slowest:.2f}", "–", "–"))
    head = ("model", "stored as", "graph", "MB", "bundle ÷ model", "TTFO ms", "stock ms", "÷ stock")
    return (*head, "differs from stock by", "n"), body


def median_with_range(samples: Sequence[float], digits: int | None = None) -> str:
    """Return the median, with the least and the most, or a dash where there are none.

    Args:
        samples: Any numbers.
        digits: Behind the point; by default one, and none where a sample has three before it.
    """
    if not samples:
        return "–"
    found = sorted(samples)
    shown = (0 if found[-1] >= 100 else 1) if digits is None else digits
    return f"{statistics.median(found):.{shown}f} ({found[0]:.{shown}f}–{found[-1]:.{shown}f})"


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["model"],
        row["form"],
        row["graph"],
        f"{row['model_bytes'] / 1e6:.1f}",
        f"{row['ratio']:.3f}",
        *(_spread(row["ttfo_s"][arm]) for arm in ("splitload", "stock")),
        f"{_of_stock(row):.2f}",
        "more than rounding" if row["difference"] is None else f"{row['difference']:.1e}",
        str(len(row["samples"]["stock"])),
    )


def _of_stock(row: Mapping[str, Any]) -> float:
    return float(row["ttfo_s"]["splitload"]["median"] / row["ttfo_s"]["stock"]["median"])


def _spread(figure: Mapping[str, float]) -> str:
    return f"{figure['median'] * 1e3:.0f} ({figure['min'] * 1e3:.0f}–{figure['max'] * 1e3:.0f})"
