"""The tables of shared inferences: what each arm takes on each link, how near predictions come, what is aimed at."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from splitload.commands.show_shared import picture
from splitload.deploy.collaborator import ALONE_IS_QUICKER
from splitload.deploy.shared_timeline import Moment
from splitload.studies.size_tables import Table, median_with_range

Named = Iterable[tuple[str, Any]]
HEADLINE = ("vgg19_bn", "resnet152", "densenet121", "convnext_tiny")  # whose geometric mean is aimed at
ATTENDING = ("distilbert", "vit_b_16")  # whose tokens look at all others
SPEEDS = (93, 73)  # Mbit/s of those
_ALONE = ("device", "server", "layer cut")


def shared(records: Named) -> Table:
    """Return what each arm takes of each model on each link."""
    head = (
        "model",
        "Mbit/s",
        *(f"{name} ms" for name in _ALONE),
        "shared ms",
        "÷ best",
        "predicted ms",
        "of a grid",
        "n",
    )
    body = [
        (
            name_of(row),
            str(row["megabits_per_s"]),
            *(_spread(row, name) for name in (*_ALONE, "shared")),
            f"{_ratio(row):.3f}",
            f"{1e3 * row['predicted_s']['shared']:.0f}",
            _of_grid(row),
            str(len(row["samples"]["shared"])),
        )
        for row in rows_of(records)
    ]
    return head, body


def targets(records: Named) -> Table:
    """Return what is aimed at, and what was measured."""
    rows = list(rows_of(records))
    chosen = [row for row in rows if name_of(row) in HEADLINE and row["megabits_per_s"] in SPEEDS]
    errors = sorted(abs(row["predicted_s"][name] / _median(row, name) - 1) for row in rows for name in row["samples"])
    alone = sum(
        each["by"] != "both" and each["why"] != ALONE_IS_QUICKER
        for row in rows
        for name in row["samples"]
        if name != "device"
        for each in _samples(row, name)
    )
    body: list[tuple[str, ...]] = []
    if chosen:
        ratios = [_ratio(row) for row in chosen]
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        body += [
            (
                f"shared ÷ best that shares nothing, geometric mean of {len(ratios)} (model, link)",
                "≤ 0.85",
                f"{mean:.3f}",
            ),
            ("the worst of them", "≤ 1.02", f"{max(ratios):.3f}"),
        ]
    attending = [row for row in rows if name_of(row) in ATTENDING]
    if attending:
        worst = max(map(_ratio, attending))
        body.append(("shared ÷ best that shares nothing where softmax is global, the worst", "≤ 1.02", f"{worst:.3f}"))
    if errors:
        near = sum(each <= 0.15 for each in errors) / len(errors)
        body += [
            (
                f"predicted against measured latency, {len(errors)} cases: median apart",
                "≤ 5 %",
                f"{statistics.median(errors):.1%}",
            ),
            ("cases within 15 %", "≥ 90 %", f"{near:.0%}"),
            ("inferences that the server should have helped with and did not", "0", str(alone)),
        ]
    return ("target", "aim", "measured"), body


def pictures(records: Named) -> str:
    """Return what both machines and the link did in one shared inference of each headline model, in text."""
    parts = []
    for row in rows_of(records):
        if row.get("moments") and name_of(row) in HEADLINE and row["megabits_per_s"] == SPEEDS[0]:
            lines = picture([Moment(**each) for each in row["moments"]])
            parts += [f"{name_of(row)} at {row['megabits_per_s']} Mbit/s", *lines, ""]
    return "\n".join(("```text", *parts[:-1], "```", "")) if parts else ""


def _of_grid(row: Mapping[str, Any]) -> str:
    optimum = row.get("optimum")
    if optimum is None:
        return "–"
    return f"{'' if optimum['is_exact'] else '≤ '}{1e3 * optimum['latency_s']:.0f}"


def _ratio(row: Mapping[str, Any]) -> float:
    return _median(row, "shared") / min(_median(row, name) for name in _ALONE if name in row["samples"])


def _median(row: Mapping[str, Any], name: str) -> float:
    return float(statistics.median(each["latency_s"] for each in _samples(row, name)))


def _spread(row: Mapping[str, Any], name: str) -> str:
    samples = _samples(row, name)
    return median_with_range([1e3 * each["latency_s"] for each in samples]) if samples else "–"


def _samples(row: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = row["samples"].get(name, [])
    return found


def name_of(row: Mapping[str, Any]) -> str:
    """Return the name of the model of a row."""
    return str(row["model"]).rpartition(":")[2]


def rows_of(records: Named) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of all records."""
    return (row for _, record in records for row in record["rows"])
