"""The table of what became of today's architectures: head and rows, which `splitload.studies.records` sets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # the head, and the rows


def architectures(records: Iterable[tuple[str, Any]]) -> Table:
    """Return a row for each architecture and kind of sizes, with the first failure of each who failed."""
    found: dict[tuple[str, str], list[Any]] = {}
    for _, record in records:
        for row in record["rows"]:
            found.setdefault((row["architecture"], row["sizes"]), []).append(row)
    body: list[tuple[str, ...]] = []
    for (name, sizes), rows in found.items():
        good = [row for row in rows if row["error"] is None]
        stages = [row["num_stages"] for row in rows if row["num_stages"]]
        differences = [row["difference"] for row in rows if row["difference"] is not None]
        first = {row["failed"]: row["error"] for row in reversed(rows) if row["error"]}
        body.append(
            (
                name,
                sizes,
                str(max(stages)) if stages else "–",
                f"{len(good)} of {len(rows)}",
                f"{max(differences):.1e}" if differences else "–",
                "; ".join(f"{who}: {error}"[:160] for who, error in first.items()) or "ok",
            )
        )
    rows = [row for each in found.values() for row in each]
    exported = [row for row in rows if row["failed"] not in ("exporter", "onnxruntime")]
    good = [row for row in exported if row["error"] is None]
    kinds = len({name for name, _ in found})
    body.append((f"all {kinds}", "", "", f"{len(good)} of {len(exported)} that a stock session runs", "", ""))
    return ("architecture", "sizes", "most stages", "ways that answer as stock", "largest difference", "failed"), body
