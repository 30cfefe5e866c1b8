"""The tables of builds and starts beside an earlier checkout, which `splitload.studies.records` sets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from splitload.studies.size_tables import Table


def builds(records: Iterable[tuple[str, Any]]) -> Table:
    """Return seconds of `splitload train` by the code of before and by that of the record."""
    body = [
        (
            row["model"],
            " ".join(row["options"]) or "searched",
            *(_spread([sample["wall_s"] for sample in row["samples"][arm]]) for arm in ("before", "after")),
            f"{row['ratio']:.2f}",
            *(_spread([sample["cpu_s"] for sample in row["samples"][arm]]) for arm in ("before", "after")),
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
            *(_spread([1e3 * sample["ttfo_s"] for sample in row["samples"][arm]]) for arm in ("before", "after")),
            f"{row['ratio']['ttfo_s']:.3f}",
            *(_spread([1e3 * sample["process_s"] for sample in row["samples"][arm]]) for arm in ("before", "after")),
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


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"
