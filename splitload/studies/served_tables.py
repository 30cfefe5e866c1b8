"""The tables of plans on emulated devices: what each plan takes there, and what is aimed at."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from splitload.studies.size_tables import Table, median_with_range

Named = Iterable[tuple[str, Any]]
ALIKE = 0.03  # what plans may differ by and count as equally good: more than that a cut must gain to be called best
BESIDE_BYTES = 2_000_000  # that a plan's peak may be above the ceiling: so much two processes differ before they load
_SINGLE = "one stage, "


class Pair(NamedTuple):
    """What came of a model on a class.

    Attributes:
        model: Its name.
        kind: The class.
        learned_s: Median time to first output of the learned plan, in seconds; None where it failed.
        best: The name of the best plan of all that fit.
        behind: The learned plan's time over that of the best; None where there is none.
        num_stages: Stages of the learned plan.
        gain: By what share the learned plan is better than the best single stage: in time, or in peak memory where
            that is what the class lacks; None where no plan of more stages is best.
        loads: Measured for the search.
        n: Samples.
    """

    model: str
    kind: str
    learned_s: float | None
    best: str
    behind: float | None
    num_stages: int
    gain: float | None
    loads: int
    n: int


def pair_of(row: Mapping[str, Any]) -> Pair:
    """Return what came of a row of a record."""
    taken_s = {name: _median(row, name, "ttfo_s") for name in row["plans"]}
    fitting = {name: seconds for name, seconds in taken_s.items() if seconds is not None and _fits(row, name)}
    best = min(fitting, key=fitting.__getitem__, default="–")
    learned_s = fitting.get("learned")
    behind = None if learned_s is None else learned_s / fitting[best]
    return Pair(
        row["model"].removeprefix("zoo:"),
        row["class"],
        learned_s,
        best,
        behind,
        len(row["plans"]["learned"]["ways"]),
        _gain(row, fitting),
        row["loads"],
        row["runs"],
    )


def plans(records: Named) -> Table:
    """Return what every plan takes on every class."""
    head = ("class", "model", "plan", "stages", "TTFO ms", "÷ best", "peak MiB", "fits")
    body: list[tuple[str, ...]] = []
    for row in _rows(records):
        best = pair_of(row).best
        least_s = _median(row, best, "ttfo_s") if best in row["plans"] else None
        for name, plan in row["plans"].items():
            seconds = _median(row, name, "ttfo_s")
            peaks = [each / (1 << 20) for each in _peaks(row, name)]
            body.append(
                (
                    row["class"],
                    row["model"].removeprefix("zoo:"),
                    name,
                    str(len(plan["ways"])),
                    median_with_range([1e3 * each["ttfo_s"] for each in _done(row, name)]),
                    "–" if seconds is None or least_s is None else f"{seconds / least_s:.3f}",
                    median_with_range(peaks),
                    "–" if row["need"] is None else "yes" if _fits(row, name) else "no",
                )
            )
    return head, body


def pairs(records: Named) -> Table:
    """Return what came of each model on each class."""
    head = ("class", "model", "learned", "TTFO ms", "best of all", "learned ÷ best", "beats one stage by", "loads", "n")
    body: list[tuple[str, ...]] = [
        (
            pair.kind,
            pair.model,
            f"{pair.num_stages} stage{'s' if pair.num_stages > 1 else ''}",
            "–" if pair.learned_s is None else f"{1e3 * pair.learned_s:.0f}",
            pair.best,
            "–" if pair.behind is None else f"{pair.behind:.3f}",
            "one stage is as good" if pair.gain is None else f"{pair.gain:.1%}{_of_what(row)}",
            str(pair.loads),
            str(pair.n),
        )
        for row in _rows(records)
        for pair in [pair_of(row)]
    ]
    return head, body


def targets(records: Named) -> Table:
    """Return what is aimed at, and what was measured."""
    found = [pair_of(row) for row in _rows(records)]
    behind = [pair.behind for pair in found if pair.behind is not None]
    gains = [pair.gain for pair in found if pair.gain is not None]
    kinds = len({pair.kind for pair in found})
    pairs_said = f"{len(found)} pairs of {kinds} classes"
    near = sum(each <= 1 + ALIKE for each in behind)
    never = sorted({pair.model for pair in found} - {pair.model for pair in found if pair.gain is not None})
    body: list[tuple[str, ...]] = [
        (f"learned plans within 3 % of the best measured, of {pairs_said}", "≥ 90 %", f"{near / len(found):.0%}"),
        ("the worst of them is behind by", "≤ 8 %", f"{max(behind) - 1:.1%}" if behind else "–"),
        (
            f"gain over the best single stage, geometric mean of the {len(gains)} pairs in which more stages are best",
            "≥ 15 %",
            f"{1 - math.prod(1 - each for each in gains) ** (1 / len(gains)):.1%}" if gains else "–",
        ),
        ("loads measured for a search, the most", "≤ 200", str(max(pair.loads for pair in found))),
        ("models for which no class makes a cut pay", "–", ", ".join(never) or "none"),
    ]
    return ("target", "aim", "measured"), body


def _gain(row: Mapping[str, Any], fitting: Mapping[str, float]) -> float | None:
    """Return by what share the learned plan beats the best single stage; None where one stage is as good as any cut."""
    singles = [name for name in row["plans"] if name.startswith(_SINGLE)]
    if row["need"] is not None:
        if any(name in fitting for name in singles) or "learned" not in fitting:
            return None
        least = min(statistics.median(peaks) for name in singles if (peaks := _peaks(row, name)))
        return 1 - statistics.median(_peaks(row, "learned")) / least
    single_s = min(fitting[name] for name in singles if name in fitting)
    cut_s = min((fitting[name] for name in fitting if len(row["plans"][name]["ways"]) > 1), default=math.inf)
    if cut_s > (1 - ALIKE) * single_s or "learned" not in fitting:
        return None
    return 1 - fitting["learned"] / single_s


def _of_what(row: Mapping[str, Any]) -> str:
    return " of peak memory" if row["need"] is not None else ""


def _fits(row: Mapping[str, Any], name: str) -> bool:
    """Return whether a plan keeps to the memory of the class, with all the memory there is."""
    if row["need"] is None:
        return True
    peaks = _peaks(row, name)
    return bool(peaks) and statistics.median(peaks) <= row["ceiling_bytes"] + BESIDE_BYTES


def _peaks(row: Mapping[str, Any], name: str) -> list[float]:
    """Return the peaks of a plan above idle, in bytes.

    Where the class has less memory than there is, with all there is, and without what the runtime takes.
    """
    number = row["plans"][name]["measured"]
    samples = row["need_samples"][number] or row["samples"][number]
    runtime_bytes = 0 if row["need"] is None else row["need"]["runtime_bytes"]
    return [
        each["peak_memory_bytes"] - each["idle_memory_bytes"] - runtime_bytes
        for each in samples
        if each is not None and "idle_memory_bytes" in each
    ]


def _done(row: Mapping[str, Any], name: str) -> list[Mapping[str, float]]:
    return [each for each in row["samples"][row["plans"][name]["measured"]] if each is not None]


def _median(row: Mapping[str, Any], name: str, key: str) -> float | None:
    """Return the median of a figure; None where a sample failed."""
    done = _done(row, name)
    return statistics.median(each[key] for each in done) if len(done) == row["runs"] else None


def _rows(records: Named) -> Sequence[Mapping[str, Any]]:
    return [row for _, record in records for row in record["rows"]]
