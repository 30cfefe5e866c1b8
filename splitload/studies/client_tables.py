"""The table of client libraries on bundles: its head and rows, which `splitload.studies.records` sets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def clients(records: Iterable[tuple[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return what became of each client, and how many there are in all."""
    rows = [row for _, record in records for row in record["rows"]]
    body: list[tuple[str, ...]] = [
        (
            f"{row['client']} {row['version'] or ''}".strip(),
            "stand-in" if row["stand_in"] else str(row.get("models", "–")),
            str(row.get("bundles", "–")),
            f"{row['from_bundles']} of {row['sessions']}" if "sessions" in row else "–",
            f"{row['difference']:.1e}" if "difference" in row else "–",
            row["error"] or "ok",
        )
        for row in rows
    ]
    good = sum(row["error"] is None for row in rows)
    body.append(("all", "", "", "", "", f"{good} of {len(rows)} ok"))
    return ("client", "models", "bundles", "sessions from bundles", "answers differ by", "outcome"), body
