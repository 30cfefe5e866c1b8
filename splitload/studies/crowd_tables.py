"""The tables of crowds: what simulated ones of growing size come to, and what scheduling itself takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from splitload.studies.size_tables import Table


def growth(records: Iterable[tuple[str, Any]]) -> Table:
    """Return head and rows of the simulated crowds."""
    head: tuple[str, ...] = (
        "simulated case", "devices", "inputs", "items/s", "of what all devices could do", "devices compute",
        "scheduler busy", "client's link busy", "stages sent GB", "of these by the client", "loads a device",
    )  # fmt: skip
    found: list[tuple[str, ...]] = []
    for row in (row for _, record in records for row in record["rows"] if row["source"] == "simulated"):
        found.append(
            (
                row["case"],
                f"{row['num_devices']:,}",
                f"{row['num_items']:,}",
                f"{row['items_per_s']:.2f}",
                *(f"{row[key]:.0%}" for key in ("share_of_ideal", "busy_share", "scheduler_share")),
                f"{row['client_link_share']:.0%}",
                f"{row['stage_bytes'] / 1e9:.1f}",
                f"{row['client_stage_bytes'] / row['stage_bytes']:.0%}" if row["stage_bytes"] else "–",
                f"{row['loads_for_each_device']:.1f}",
            )
        )
    return head, found


def scheduling(records: Iterable[tuple[str, Any]]) -> Table:
    """Return head and rows of what was measured of the scheduling itself."""
    head = ("devices (simulated)", "stages", "inputs", "tasks", "scheduling of splitload itself, ms a task (measured)")
    found = [
        (
            *(f"{row[key]:,}" for key in ("num_devices", "num_stages", "num_items", "num_assignments")),
            f"{row['scheduling_s_for_each_task'] * 1e3:.2f}",
        )
        for _, record in records
        for row in record["rows"]
        if row["source"] == "measured"
    ]
    return head, found
