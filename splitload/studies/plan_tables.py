"""Tables of plans, learned and measured: heads and rows, which `splitload.studies.records` sets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from splitload.studies.optimality import figures, ratios, trained_figures, trained_ratios

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # the head, and the rows


def search(records: Iterable[tuple[str, Any]]) -> Table:
    """Return how near learned plans came to the optimum: by device and objective, and in all."""
    rows = [row for _, record in records for row in record["rows"]]
    agents = list(dict.fromkeys(agent for row in rows for agent in row["search_s"]))
    body = []
    for agent in agents:
        mine = [row for row in rows if agent in row["search_s"]]
        body += [(agent, *title, *_optimality(group, agent)) for title, group in _by_device(mine).items()]
        body.append((agent, "all", "all", *_optimality(mine, agent)))
    head = ("agent", "device", "objective", "models", "plans", "learned ÷ optimum, p90", "worst", "worst model")
    return (*head, "proved by learning", "optima proved", "largest gap of others", "slowest search s"), body


def _by_device(rows: Iterable[Any]) -> dict[tuple[str, str], list[Any]]:
    """Return rows by their device, with where its times are from, and their objective."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        groups.setdefault((f"{row['device']} ({row['source']})", row["objective"]), []).append(row)
    return groups


def _optimality(rows: Sequence[Mapping[str, Any]], agent: str) -> tuple[str, ...]:
    """Return the figures of an agent's plans in some rows of the record."""
    found = figures([stage for row in rows for stage in row["stages"]], agent)
    worst = max(rows, key=lambda row: max(ratios(row["stages"], agent)))
    gap = found["largest_gap"]
    return (
        str(len({row["model"] for row in rows})),
        str(found["num_plans"]),
        f"{found['p90_ratio']:.4f}",
        f"{found['worst_ratio']:.4f}",
        worst["model"] if found["worst_ratio"] >= 1.00005 else "–",
        str(found["num_proved_by_agent"]),
        f"{found['num_optima_proved']} of {found['num_optima']}",
        "–" if gap is None else f"{gap:.2%}",
        f"{max(max(row['search_s'][agent]) for row in rows):.1f}",
    )


def as_trained(records: Iterable[tuple[str, Any]]) -> Table:
    """Return how near the command's search came to the optimum: by device and objective, and in all."""
    rows = [row for _, record in records for row in record["rows"]]
    groups: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        groups.setdefault((f"{row['device']} ({row['source']})", row["objective"]), []).append(row)
    body = [(*title, *_as_trained(group)) for title, group in groups.items()]
    body.append(("all", "all", *_as_trained(rows)))
    head = ("device", "objective", "models", "plans", "learned ÷ exact, p90", "worst", "worst model")
    return (
        *head, "optimum proved", "learned ÷ proved bound, p90", "worst", "taken as learned",
        "÷ plan taken, worst", "slowest learning s", "slowest search s",
    ), body  # fmt: skip


def _as_trained(rows: Sequence[Any]) -> tuple[str, ...]:
    """Return the figures of some rows of the record."""
    found = trained_figures(rows)
    worst = max(rows, key=lambda row: max(ratio for ratio, *_ in trained_ratios(row)))
    return (
        str(len({row["model"] for row in rows})),
        str(found["num_plans"]),
        f"{found['p90_ratio']:.4f}",
        f"{found['worst_ratio']:.4f}",
        worst["model"] if found["worst_ratio"] >= 1.00005 else "–",
        str(found["num_proved"]),
        f"{found['p90_over_bound']:.4f}",
        f"{found['worst_over_bound']:.4f}",
        str(found["num_taken"]),
        f"{found['worst_deciding']:.4f}",
        f"{found['most_learn_s']:.1f}",
        f"{found['most_search_s']:.1f}",
    )


def ablation(records: Iterable[tuple[str, Any]]) -> Table:
    """Return what the learning agent comes to with one of its defaults changed, for each objective."""
    rows = [row for _, record in records for row in record["rows"]]
    head = ("objective", "changed (default)", "to", "plans", "÷ optimum, mean", "worst", "missed", "proved")
    body: list[tuple[str, ...]] = [
        (
            row["objective"],
            row["factor"],
            row["value"],
            str(found["num_plans"]),
            f"{found['mean_ratio']:.4f}",
            f"{found['worst_ratio']:.4f}",
            str(found["num_missed"]),
            str(found["num_proved"]),
            f"{found['median_best_at']:.0f}",
            f"{found['median_episodes']:.0f}",
            f"{found['mean_search_s']:.2f}",
        )
        for row in sorted(rows, key=lambda row: str(row["objective"]))
        for found in [row["figures"]]
    ]
    return (*head, "episodes to best, median", "to stop", "search s, mean"), body


def predictions(records: Iterable[tuple[str, Any]]) -> Table:
    """Return how far predicted times to first output are from measured ones: by model, by kind of plan, and in all."""
    rows = [row for _, record in records for row in record["rows"]]
    cases = [case for row in rows for case in row["cases"]]
    groups = [(row["model"], row["cases"]) for row in rows]
    groups.append(("all of one stage", [case for case in cases if case["num_stages"] == 1]))
    for threads in sorted({case["threads"] for case in cases}):
        title = f"all cuts, {threads} loading thread{'s' if threads > 1 else ''}"
        groups.append((title, [case for case in cases if case["num_stages"] > 1 and case["threads"] == threads]))
    groups.append(("all", cases))
    free = [(1 + case["error"]) * case["predicted_plain_s"] / case["predicted_s"] - 1 for case in cases]
    without = [{**case, "error": error} for case, error in zip(cases, free, strict=True)]
    groups.append(("all, were a call and a cut free", without))
    head = ("model", "cases", "error median", "p10", "p90", "within ±10 %", "within ±20 %")
    return (*head, "halves apart", "profiles apart", "n"), [
        (title, *_errors(group)) for title, group in groups if group
    ]


def _errors(cases: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the figures of some cases: their number, how their errors are distributed, the noise, and n.

    The noise is how far two halves of the samples, and the predictions of two profiles, are apart in the median case.
    """
    errors = [case["error"] for case in cases]
    low, high = np.quantile(errors, [0.1, 0.9])
    shares = [sum(abs(error) <= limit for error in errors) / len(errors) for limit in (0.1, 0.2)]
    halves = statistics.median(case["halves_apart"] for case in cases)
    profiles = statistics.median(abs(case["predicted_again_s"] / case["predicted_s"] - 1) for case in cases)
    runs = sorted({len(case["samples_s"]["ttfo_s"]) for case in cases})
    return (
        str(len(errors)),
        *(f"{error:+.1%}" for error in (statistics.median(errors), low, high)),
        *(f"{share:.0%}" for share in shares),
        f"{halves:.1%}",
        f"{profiles:.1%}",
        "–".join(map(str, dict.fromkeys((runs[0], runs[-1])))),
    )


def budget(records: Iterable[tuple[str, Any]]) -> Table:
    """Return how plans found within a budget of loads do beside those of a full profile, measured."""
    head = ("model", "objective", "k", "loads", "of a full profile", "budget ms", "full ms", "budget ÷ full", "n")
    return head, [
        (
            row["model"],
            f"{row['objective']} ({row['compared_by']})",
            " and ".join(dict.fromkeys(str(len(row["split_points"][name]) + 1) for name in ("budget", "full")))
            + ("" if row["num_stages"] is not None else ", free"),
            str(row["loads"]),
            str(row["full_loads"]),
            _spread(row["samples_s"]["budget"]),
            _spread(row["samples_s"]["full"]),
            f"{row['ratio']:.3f}" + (", same plan" if len({str(p) for p in row["split_points"].values()}) == 1 else ""),
            str(len(row["samples_s"]["full"])),
        )
        for _, record in records
        for row in record["rows"]
    ]


def rivals(records: Iterable[tuple[str, Any]]) -> Table:
    """Return the measured time to first output of learned plans beside that of the baselines' plans."""
    rows = [row for _, record in records for row in record["rows"]]
    names = list(dict.fromkeys(name for row in rows for name in row["baselines_s"]))
    head = ("model", "k", "learned TTFO ms", *(f"{name} ms" for name in names), "learned ÷ best baseline", "n")
    return head, [
        (
            row["model"],
            str(row["num_stages"]) if row["num_stages"] is not None else f"free: {_count(row, 'learned')}",
            _spread(_samples(row, "learned")),
            *(_rival(row, name) for name in names),
            f"{row['ratio']:.3f}",
            str(len(_samples(row, "learned"))),
        )
        for row in rows
    ]


def _rival(row: Mapping[str, Any], name: str) -> str:
    """Return the time of a baseline's plan, or what else there is to say of it."""
    if name not in row["baselines_s"]:
        return "–"
    if _plan(row, name) is _plan(row, "learned"):
        return "the same plan"
    free = f", k = {_count(row, name)}" if row["num_stages"] is None else ""
    return _spread(_samples(row, name)) + free


def _plan(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    plan: Mapping[str, Any] = next(plan for plan in row["plans"] if name in plan["names"])
    return plan


def _count(row: Mapping[str, Any], name: str) -> int:
    return len(_plan(row, name)["split_points"]) + 1


def _samples(row: Mapping[str, Any], name: str) -> list[float]:
    samples: list[float] = _plan(row, name)["ttfo_s"]
    return samples


def _spread(samples_s: Sequence[float]) -> str:
    """Return median, minimum and maximum in milliseconds."""
    return f"{statistics.median(samples_s) * 1e3:.1f} ({min(samples_s) * 1e3:.1f}–{max(samples_s) * 1e3:.1f})"
