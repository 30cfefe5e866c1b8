"""Tables of native stages run by other versions of onnxruntime than their own, from the records of `matrix`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _rows(records: Iterable[tuple[str, Mapping[str, Any]]], kind: str) -> list[Mapping[str, Any]]:
    return [row for _, record in records for row in record["rows"] if row["of"] == kind]


def pairs(records: Iterable[tuple[str, Mapping[str, Any]]]) -> Table:
    """Return a row for each model: over all pairs of versions, how often native stages were taken, and how far off."""
    table: list[tuple[str, ...]] = []
    for model, group in groupby(_rows(records, "pair"), key=lambda row: row["model"]):
        rows = list(group)
        versions = list(dict.fromkeys(row["made_by"] for row in rows))
        table.append(
            (
                model.removeprefix("zoo:"),
                ", ".join(versions),
                f"{sum(row['variant'] == 'native' for row in rows)} of {len(rows)}",
                f"{sum(row['bit_equal'] for row in rows)} of {len(rows)}",
                f"{max(row['relative_difference'] for row in rows):.1e}",
                "–" if rows[0]["canary_bytes"] is None else f"{max(row['canary_bytes'] for row in rows) / 1e3:.0f}",
            )
        )
    head = (
        "model",
        "versions, each made and run",
        "native taken",
        "bit-equal",
        "largest difference ÷ output",
        "canary kB",
    )
    return head, table


def first_outputs(records: Iterable[tuple[str, Mapping[str, Any]]]) -> Table:
    """Return a row for each model: median and spread of the time to first output, in milliseconds."""
    rows = _rows(records, "ttfo")
    arms = list(dict.fromkeys(arm for row in rows for arm in row["samples_s"]))
    table = [
        (
            row["model"].removeprefix("zoo:"),
            f"{row['made_by']} → {row['run_by']}",
            *(_spread(row["samples_s"][arm]) for arm in arms),
            str(len(row["samples_s"][arms[0]])),
        )
        for row in rows
    ]
    return ("model", "made by → run by", *arms, "n"), table


def _spread(samples: list[float]) -> str:
    return f"{statistics.median(samples) * 1e3:.0f} ({min(samples) * 1e3:.0f}–{max(samples) * 1e3:.0f})"
