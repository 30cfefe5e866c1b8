"""The tables beside that of shared inferences: operators, published figures, answers, planning, traces, and kills."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from splitload.studies.shared_tables import Named, name_of, rows_of
from splitload.studies.size_tables import Table, median_with_range


def operators(records: Named) -> Table:
    """Return how many operators are counted of each network, beside what is published."""
    body: list[tuple[str, ...]] = []
    for row in rows_of(records):
        counted = [sum(row[kind].values()) for kind in ("local", "global")]
        equal = "yes" if counted == row["published"] else "no"
        body.append((row["model"], _pair(row["published"]), _pair(counted), equal))
    return ("network", "published local / global", "counted", "the same"), body


def published(records: Named) -> Table:
    """Return what shared inferences take on published figures, simulated, beside the best layer cut."""
    body: list[tuple[str, ...]] = []
    for row in rows_of(records):
        taken, given = row["simulated_s"], row["published_ms"]
        body.append(
            (
                name_of(row),
                f"{given['device_ms']:g} / {given['server_ms']:g}",
                str(row["megabits_per_s"]),
                *(f"{1e3 * taken[name]:.1f}" for name in ("device", "server", "layer cut", "shared")),
                f"{1 - taken['shared'] / taken['layer cut']:.1%}",
                f"{1 - taken['shared'] / min(taken[name] for name in ('device', 'server', 'layer cut')):.1%}",
                f"{1 - taken['shared'] / taken['device']:.0%}",
                f"{1 - row['spared_j'] / row['alone_j']:.0%}",
            )
        )
    head = ("network", "device / server ms", "Mbit/s", "device", "server", "layer cut", "shared")
    return (*head, "under the layer cut", "under the best of the three", "under the device", "energy spared"), body


def equality(records: Named) -> Table:
    """Return how far the answers of random plans are from those of each model."""
    body: list[tuple[str, ...]] = []
    for row in rows_of(records):
        errors, exchanges = ([each[key] for each in row["plans"]] for key in ("error", "exchanges"))
        body.append(
            (
                name_of(row), str(len(errors)), str(row["levels"]), f"{min(exchanges)}–{max(exchanges)}",
                f"{statistics.median(errors):.1e}", f"{max(errors):.1e}",
            )
        )  # fmt: skip
    return ("model", "plans", "levels", "exchanges", "relative error, median", "largest"), body


def planning(records: Named) -> Table:
    """Return how long it takes to plan each model, and what is written."""
    body: list[tuple[str, ...]] = [
        (
            name_of(row),
            str(row["links"]),
            f"{row['planning_s']:.0f}",
            f"{row['beside_bytes'] / 1e6:.1f}",
            f"{row['beside_bytes'] / row['bundle_bytes']:.1%}",
            str(row["exact"]),
        )
        for row in rows_of(records)
    ]
    return ("model", "links", "seconds", "MB beside the bundle", "of the bundle", "links with an exact optimum"), body


def traces(records: Named) -> Table:
    """Return what inferences take on the average while a link changes, by our choice of plans and by fixed ones."""
    rows, body = list(rows_of(records)), list[tuple[str, ...]]()
    for where in dict.fromkeys(row["where"] for row in rows):
        own = [row for row in rows if row["where"] == where]
        best_s = min((_mean_s(row) for row in own if row["plan"] is not None), default=None)
        for row in own:
            ratio = "–" if best_s is None else f"{_mean_s(row) / best_s:.3f}"
            body.append(
                (
                    name_of(row), where, row["arm"], f"{1e3 * _mean_s(row):.0f}",
                    median_with_range([1e3 * each["latency_s"] for each in row["samples"]]), ratio,
                    f"{sum(each['by'] == 'both' for each in row['samples'])} of {len(row['samples'])}",
                )
            )  # fmt: skip
    head = ("model", "link", "plan", "mean ms", "median ms", "÷ best fixed plan", "shared")
    return head, body


def kills(records: Named) -> Table:
    """Return what came of inferences whose server was killed."""
    body: list[tuple[str, ...]] = []
    for row in rows_of(records):
        outcomes = row["outcomes"]
        alone = [each for each in outcomes if each["by"] == "device" and each["latency_s"] is not None]
        usual_s = statistics.median(row["alone_s"])
        added_s = max((each["latency_s"] - usual_s for each in alone), default=0.0)
        body.append(
            (
                name_of(row), str(len(outcomes)), str(sum(not each["right"] for each in outcomes)), str(len(alone)),
                f"{1e3 * usual_s:.0f}", f"{1e3 * added_s:.0f}", f"{1e3 * row['deadline_s']:.0f}",
            )
        )  # fmt: skip
    head = ("model", "kills", "wrong or missing", "answered alone", "alone ms", "later than that by, at most")
    return (*head, "deadline ms"), body


def wire(records: Named) -> Table:
    """Return what a message of each size takes by each way to carry it."""
    body: list[tuple[str, ...]] = []
    for row in rows_of(records):
        tls, other = ([1e3 * each for each in row["trips_s"][name]] for name in ("tls", "zmq-curve"))
        ratio = statistics.median(tls) / statistics.median(other)
        body.append(
            (str(row["bytes"]), median_with_range(tls, 2), median_with_range(other, 2), f"{ratio:.2f}", str(len(tls)))
        )
    return ("bytes", "TLS ms", "ZeroMQ with CURVE ms", "TLS ÷ ZeroMQ", "n"), body


def _mean_s(row: Mapping[str, Any]) -> float:
    return statistics.fmean(each["latency_s"] for each in row["samples"])


def _pair(counts: Iterable[int]) -> str:
    return " / ".join(map(str, counts))
