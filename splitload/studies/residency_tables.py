"""The tables of models under a ceiling, and of what is aimed at for them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from splitload.studies.size_tables import Table, median_with_range

_MIB = 1 << 20
_AIMS = {"40MB": (43 * _MIB, 1.10), "64MB": (70 * _MIB, 1.35)}  # of ceilings: peak in bytes, steady ÷ without
_MEAN_AIM, _SMALL_AIM = 1.15, 1.15


def residency(records: Iterable[tuple[str, Any]]) -> Table:
    """Return what each model takes in each arm: peak above the idle process, and time."""
    body: list[tuple[str, ...]] = []
    for row in (row for _, record in records for row in record["rows"]):
        for arm, taken in row["arms"].items():
            ceiling = row.get("ceilings", {}).get(arm.partition(", ")[2])
            word = (
                arm
                if ceiling is None
                else f"{arm} = {ceiling['ceiling_bytes'] / 1e6:.1f} MB, k = {ceiling['num_stages']}"
            )
            of = (
                f"{row['memory_bytes'] / 1e6:.0f} MB machine"
                if row["of"] == "small"
                else f"{row['weights_bytes'] / 1e6:.0f} MB"
            )
            body.append(
                (
                    f"{row['model']} ({of})",
                    word,
                    _spread(taken["peak_bytes"], 1 / _MIB),
                    _spread(taken["steady_s"], 1e3),
                    _without(row, arm),
                    _spread(taken["ttfo_s"], 1e3),
                    f"{sum(each is not None for each in taken['steady_s'])} of {len(taken['steady_s'])}",
                )
            )
    return ("model", "arm", "peak above idle MiB", "steady ms", "÷ without ceiling", "TTFO ms", "n"), body


def targets(records: Iterable[tuple[str, Any]]) -> Table:
    """Return what is aimed at, and what was measured."""
    body: list[tuple[str, ...]] = []
    thirds: list[float] = []
    for row in (row for _, record in records for row in record["rows"]):
        if row["of"] == "small":
            bytes_per_s = statistics.median(row["measured_bytes_per_s"])
            limit_s = row["stage_bytes"] / bytes_per_s
            for arm, taken in row["arms"].items():
                ended = [each for each in taken["steady_s"] if each is not None]
                share = f"{statistics.median(ended) / limit_s:.2f}" if ended else "killed"
                aim = f"≤ {_SMALL_AIM}" if arm not in ("stock", "tuned", "splitload, all") else "–"
                body.append(
                    (
                        f"{row['model']} in {row['memory_bytes'] / 1e6:.0f} MB, {arm}: steady ÷ (bytes ÷ bandwidth)",
                        aim,
                        share,
                    )
                )
            continue
        for word in row["ceilings"]:
            taken, ratio = row["arms"][f"splitload, {word}"], _ratio(row, word)
            if word == "third":
                thirds.append(ratio)
            elif word in _AIMS:
                most_bytes, most = _AIMS[word]
                peak = statistics.median(taken["peak_bytes"])
                body.append(
                    (f"{row['model']} under {word}: peak, MiB", f"≤ {most_bytes // _MIB}", f"{peak / _MIB:.1f}")
                )
                body.append((f"{row['model']} under {word}: steady ÷ without", f"≤ {most:.2f}", f"{ratio:.2f}"))
    if thirds:
        mean = math.exp(statistics.fmean(map(math.log, thirds)))
        body.append(
            (
                f"{len(thirds)} models under a third of their weights: steady ÷ without, geometric mean",
                f"≤ {_MEAN_AIM}",
                f"{mean:.2f}",
            )
        )
    return ("target", "aim", "measured"), body


def _ratio(row: Mapping[str, Any], word: str) -> float:
    """Return the steady time under a ceiling over that of the same bundle without, of the medians."""
    under, without = (
        statistics.median(row["arms"][name]["steady_s"]) for name in (f"splitload, {word}", f"splitload, all ({word})")
    )
    return float(under / without)


def _without(row: Mapping[str, Any], arm: str) -> str:
    word = arm.partition(", ")[2]
    return f"{_ratio(row, word):.2f}" if row["of"] == "model" and word in row["ceilings"] else ""


def _spread(samples: Iterable[float | None], factor: float) -> str:
    """Return the median of what ended, with the least and the most."""
    found = [each * factor for each in samples if each is not None]
    return median_with_range(found) if found else "killed"
