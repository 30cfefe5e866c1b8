"""The tables of plans on emulated devices: what each plan takes there, and what is aimed at."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from splitload.studies.served_rounds import Samples, median_s
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
        best: The name of the best plan of all that keep to the memory of the class.
        behind: The learned plan's time over that of the best; None where there is none.
        behind_unbiased: The same with the best chosen in every other round and compared in the rest, both ways round:
            of plans that are as good the least median is lower than what it is of, and this one is not.
        behind_any: `behind` with those among the plans that ran, but would take more memory where there is more.
        num_stages: Stages of the learned plan.
        gain: By what share the learned plan is better than the best single stage: in peak memory where that is what the
            class lacks and no single stage keeps to it, else in time. None where no plan of more stages is better.
        is_clear: Whether the best of more stages is better by more than `ALIKE`.
        is_of_memory: Whether the gain is of peak memory.
        loads: Measured for the search.
        n: Samples of the learned plan.
    """

    model: str
    kind: str
    learned_s: float | None
    best: str
    behind: float | None
    behind_unbiased: float | None
    behind_any: float | None
    num_stages: int
    gain: float | None
    is_clear: bool
    is_of_memory: bool
    loads: int
    n: int


class _Gain(NamedTuple):
    share: float | None
    is_clear: bool
    is_of_memory: bool


def pair_of(row: Mapping[str, Any]) -> Pair:
    """Return what came of a row of a record."""
    taken_s = {name: seconds for name in row["plans"] if (seconds := _median(row, name)) is not None}
    fitting = {name: seconds for name, seconds in taken_s.items() if _fits(row, name)}
    best = min(fitting, key=fitting.__getitem__, default="–")
    learned_s = fitting.get("learned")
    return Pair(
        row["model"].removeprefix("zoo:"),
        row["class"],
        learned_s,
        best,
        None if learned_s is None else learned_s / fitting[best],
        None if learned_s is None else _unbiased(row, fitting),
        None if learned_s is None else learned_s / min(taken_s.values()),
        len(row["plans"]["learned"]["ways"]),
        *_gain(row, fitting),
        row["loads"],
        len(row["samples"][row["plans"]["learned"]["measured"]]),
    )


def plans(records: Named) -> Table:
    """Return what every plan takes on every class."""
    head = ("class", "model", "plan", "stages", "TTFO ms", "÷ best", "peak MiB", "within the ceiling", "n")
    body: list[tuple[str, ...]] = []
    for row in _rows(records):
        best = pair_of(row).best
        least_s = _median(row, best) if best in row["plans"] else None
        for name, plan in row["plans"].items():
            seconds = _median(row, name)
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
                    str(len(_samples(row, name))),
                )
            )
    return head, body


def pairs(records: Named) -> Table:
    """Return what came of each model on each class."""
    head = (
        "class", "model", "learned", "TTFO ms", "best of all", "learned ÷ best", "unbiased", "beats one stage by",
        "loads for the cuts", "n",
    )  # fmt: skip
    body: list[tuple[str, ...]] = [
        (
            pair.kind,
            pair.model,
            f"{pair.num_stages} stage{'s' if pair.num_stages > 1 else ''}",
            "failed" if pair.learned_s is None else f"{1e3 * pair.learned_s:.0f}",
            pair.best,
            "–" if pair.behind is None else f"{pair.behind:.3f}",
            "–" if pair.behind_unbiased is None else f"{pair.behind_unbiased:.3f}",
            "one stage is as good"
            if pair.gain is None
            else f"{pair.gain:.1%}{' of peak memory' if pair.is_of_memory else ''}",
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
    failed = sum(pair.learned_s is None for pair in found)
    behind = [pair.behind for pair in found if pair.behind is not None]
    unbiased = [pair.behind_unbiased for pair in found if pair.behind_unbiased is not None]
    scarce = [pair.behind_any for pair in found if pair.is_of_memory and pair.behind_any is not None]
    gains = [(pair.gain, pair.is_clear) for pair in found if pair.gain is not None and not pair.is_of_memory]
    spared = [pair.gain for pair in found if pair.gain is not None and pair.is_of_memory]
    kinds = len({pair.kind for pair in found})
    near = sum(each <= 1 + ALIKE for each in behind)
    never = sorted({pair.model for pair in found} - {pair.model for pair in found if pair.is_clear})
    clear = [gain for gain, is_clear in gains if is_clear]
    body: list[tuple[str, ...]] = [
        (
            f"learned plans within 3 % of the best measured, of {len(found)} pairs of {kinds} classes",
            "≥ 90 %",
            f"{near / len(found):.0%}",
        ),
        (
            "the worst of them is behind by",
            "≤ 8 %",
            f"{failed} failed" if failed else f"{max(behind) - 1:.1%}",
        ),
        ("learned ÷ best, unbiased, geometric mean", "–", f"{_mean(unbiased):.3f}" if unbiased else "–"),
        (
            f"gain over the best single stage, geometric mean of the {len(clear)} pairs in which a cut gains over 3 %",
            "≥ 15 %",
            _mean_gain(clear),
        ),
        (
            f"the same, of the {len(gains)} pairs in which a cut gains anything",
            "–",
            _mean_gain([gain for gain, _ in gains]),
        ),
        (
            f"peak memory spared against the best single stage, geometric mean of the {len(spared)} pairs that lack it",
            "≥ 15 %",
            _mean_gain(spared),
        ),
        (
            "there, learned ÷ best of all that ran, whatever memory they would take, geometric mean",
            "–",
            f"{_mean(scarce):.3f}" if scarce else "–",
        ),
        (
            "loads measured for the cuts of a search, the most; ways to load take up to 22 of each stage besides",
            "≤ 200",
            str(max(pair.loads for pair in found)),
        ),
        ("models for which no class makes a cut pay", "–", ", ".join(never) or "none"),
    ]
    return ("target", "aim", "measured"), body


def _mean(ratios: Sequence[float]) -> float:
    return math.prod(ratios) ** (1 / len(ratios))


def _mean_gain(gains: Sequence[float]) -> str:
    return f"{1 - _mean([1 - each for each in gains]):.1%}" if gains else "–"


def _unbiased(row: Mapping[str, Any], names: Iterable[str]) -> float | None:
    """Return `Pair.behind_unbiased`; None where a half of the rounds has none of the samples that it takes."""
    halves = [{name: _median(row, name, half) for name in names} for half in (0, 1)]
    ratios = []
    for chosen, compared in (halves, halves[::-1]):
        known = {name: seconds for name, seconds in chosen.items() if seconds is not None}
        best_s = compared[min(known, key=known.__getitem__)] if known else None
        learned_s = compared["learned"]
        if best_s is None or learned_s is None:
            return None
        ratios.append(learned_s / best_s)
    return _mean(ratios)


def _gain(row: Mapping[str, Any], fitting: Mapping[str, float]) -> _Gain:
    """Return what the learned plan gains over the best single stage; a plan that failed gains nothing."""
    singles = [name for name in row["plans"] if name.startswith(_SINGLE)]
    single_s = min((fitting[name] for name in singles if name in fitting), default=math.inf)
    if row["need"] is not None and single_s == math.inf:
        least = min((statistics.median(peaks) for name in singles if (peaks := _peaks(row, name))), default=math.inf)
        peaks = _peaks(row, "learned") if "learned" in fitting else []
        return _Gain(1 - statistics.median(peaks) / least if peaks and least < math.inf else 0.0, True, True)
    cut_s = min((fitting[name] for name in fitting if len(row["plans"][name]["ways"]) > 1), default=math.inf)
    if cut_s >= single_s:
        return _Gain(None, False, False)
    gain = 1 - fitting.get("learned", single_s) / single_s if single_s < math.inf else 0.0
    return _Gain(gain, cut_s <= (1 - ALIKE) * single_s, False)


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
    return [each for each in _samples(row, name) if each is not None]


def _samples(row: Mapping[str, Any], name: str) -> Samples:
    samples: Samples = row["samples"][row["plans"][name]["measured"]]
    return samples


def _median(row: Mapping[str, Any], name: str, half: int | None = None) -> float | None:
    """Return the median time to first output of a plan; None where it failed.

    Args:
        row: Of a record.
        name: Of a plan.
        half: 0 or 1 for every other round; None for all.
    """
    samples = _samples(row, name)[half::2] if half is not None else _samples(row, name)
    seconds = median_s(samples) if samples else math.inf
    return None if math.isinf(seconds) else seconds


def _rows(records: Named) -> Sequence[Mapping[str, Any]]:
    return [row for _, record in records for row in record["rows"]]
