"""The tables of builds and starts, beside an earlier checkout or stock, which `splitload.studies.records` sets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from splitload.studies.size_tables import Table


def builds(records: Iterable[tuple[str, Any]]) -> Table:
    """Return seconds of `splitload train` by the code of before and by that of the record."""
    body = [
        (
            row["model"],
            " ".join(row["options"]) or "searched",
            *_spreads(row, "wall_s"),
            f"{row['ratio']:.2f}",
            *_spreads(row, "cpu_s"),
            "yes" if row["same_files"] else "no",
            str(len(row["samples"]["after"])),
        )
        for _, record in records
        for row in record["rows"]
    ]
    head = (
        "model",
        "plan",
        "before s",
        "after s",
        "after ÷ before",
        "before, CPU s",
        "after, CPU s",
        "same files",
        "n",
    )
    return head, body


def starts(records: Iterable[tuple[str, Any]]) -> Table:
    """Return milliseconds to the first output by the code of before and by that of the record."""
    body = [
        (
            row["model"],
            *_spreads(row, "ttfo_s", 1e3),
            f"{row['ratio']['ttfo_s']:.3f}",
            *_spreads(row, "process_s", 1e3),
            f"{row['ratio']['process_s']:.3f}",
            str(len(row["samples"]["after"])),
        )
        for _, record in records
        for row in record["rows"]
    ]
    head = (
        "model",
        "TTFO before ms",
        "TTFO after ms",
        "after ÷ before",
        "whole process before ms",
        "whole process after ms",
        "after ÷ before",
        "n",
    )
    return head, body


def portable(records: Iterable[tuple[str, Any]]) -> Table:
    """Return milliseconds of portable variants beside stock sessions, and what is aimed at."""
    arms = ("stock", "portable")
    body = [
        (
            row["model"],
            *_spreads(row, "ttfo_s", 1e3, arms),
            f"{row['ratio']['ttfo_s']:.2f}",
            *_spreads(row, "steady_inference_s", 1e3, arms),
            f"{row['ratio']['steady_inference_s']:.2f}",
            f"{row['ratio']['process_s']:.2f}",
            f"{100 * row['portable_bytes'] / (row['bundle_bytes'] - row['portable_bytes']):.2f}",
            f"{row['largest_difference']:.1e}",
            str(len(row["samples"]["portable"])),
        )
        for _, record in records
        for row in record["rows"]
    ]
    head = (
        "model",
        "TTFO stock ms",
        "TTFO portable ms",
        "÷ stock (aim ≤ 0.5)",
        "steady stock ms",
        "steady portable ms",
        "÷ stock (aim ≤ 1.03)",
        "whole process ÷ stock",
        "the bundle grows by %",
        "differs from stock by",
        "n",
    )
    return head, body


def _spreads(
    row: Mapping[str, Any], figure: str, scale: float = 1.0, arms: tuple[str, ...] = ("before", "after")
) -> Iterator[str]:
    """Yield the median of a figure with its spread, for each arm."""
    for arm in arms:
        values = [scale * sample[figure] for sample in row["samples"][arm]]
        yield f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"
