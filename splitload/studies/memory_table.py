"""The table of memory: what building and serving a model take."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

_MIB = 1 << 20


def memory(records: Iterable[tuple[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return head and rows: medians over fresh processes."""
    head: tuple[str, ...] = (
        "model", "peak of building ÷ stock", "stages", "bundle ÷ model", "settled MiB", "÷ one stage", "÷ stock",
        "proportional MiB", "n",
    )  # fmt: skip
    found: list[tuple[str, ...]] = []
    for row in (row for _, record in records for row in record["rows"]):
        middle = {key: statistics.median(row[key]) for key in row if key.endswith("peak_bytes") or "rss" in key}
        name = f"{row['model'].rpartition(':')[2]} ({row['model_bytes'] / 1e6:.1f} MB)"
        one = statistics.median(row["stages"][0]["rss_bytes"])
        for stage in row["stages"]:
            rss, pss = (statistics.median(stage[key]) for key in ("rss_bytes", "pss_bytes"))
            found.append(
                (
                    name,
                    f"{middle['build_peak_bytes'] / middle['stock_peak_bytes']:.2f}",
                    str(stage["num_stages"]),
                    f"{stage['bundle_bytes'] / row['model_bytes']:.2f}",
                    f"{rss / _MIB:.0f}",
                    f"{rss / one:.2f}",
                    f"{rss / middle['stock_rss_bytes']:.2f}",
                    f"{pss / _MIB:.0f}",
                    str(len(stage["rss_bytes"])),
                )
            )
    return head, found
