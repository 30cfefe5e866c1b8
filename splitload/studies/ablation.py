"""What each default of the learning agent is worth, one changed at a time: `python -m splitload.studies.ablation`."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitload.agents.exact_ttfo import Optimum
from splitload.base.cache import user_cache
from splitload.base.errors import SplitloadError, UsageError
from splitload.commands.console import Console
from splitload.plan.objectives import OF_LOADING
from splitload.plan.profile import Profile
from splitload.planner.optimum import optimum
from splitload.planner.parallel import run_all
from splitload.studies.optimality import Learned, Setting, call, learn
from splitload.studies.records import write_record
from splitload.studies.study import at_least, check_workers, profile_of, study_parser, take_workers

MODELS = ("zoo:mobilenet_v1", "zoo:densenet201", "zoo:vgg19")
DEVICES = ("s20", "rpi4")  # 8 threads and 4: with more stages than threads a load waits, and rewards are of the past
STAGES = (4, 8, 12, 16)  # two are found at once, whatever is changed; `train` looks at no more than 16
SEEDS = 5
LIMIT_S = 20.0  # for each proof that a plan is optimal
MISSED = 1e-6  # above the optimum by more than this share a plan counts as another


@dataclass(frozen=True, slots=True)
class Change:
    """The agent with one default changed.

    Attributes:
        factor: What is changed.
        value: To what.
        setting: How that is asked for.
        objectives: Where it makes a difference.
    """

    factor: str
    value: str
    setting: Setting
    objectives: Sequence[str] = OF_LOADING


VARIANTS = (
    Change("nothing", "defaults", Setting()),
    Change("learning rate α (1)", "0.5", Setting({"learning_rate": 0.5})),
    Change("learning rate α (1)", "0.1", Setting({"learning_rate": 0.1})),
    Change("discount factor γ (1)", "0.9", Setting({"discount_factor": 0.9})),
    Change("discount factor γ (1)", "0.5", Setting({"discount_factor": 0.5})),
    Change("exploration ε (0.1 → 0.02)", "0", Setting({"epsilon_start": 0.0, "epsilon_end": 0.0})),
    Change("exploration ε (0.1 → 0.02)", "0.3 → 0.05", Setting({"epsilon_start": 0.3, "epsilon_end": 0.05})),
    Change("share of returns (0.9)", "0", Setting({"return_share": 0.0}), ("ttfo",)),
    Change("share of returns (0.9)", "1", Setting({"return_share": 1.0}), ("ttfo",)),
    Change("temperature (0.006)", "0", Setting({"temperature": 0.0}), ("ttfo",)),
    Change("temperature (0.006)", "0.02", Setting({"temperature": 0.02}), ("ttfo",)),
    Change("optimistic start (yes)", "no", Setting({"optimistic": False})),
    Change("reward (eq. 4, then one-sided)", "eq. 4 alone", Setting(train={"finish": False}), ("balance",)),
    Change("reward (eq. 4, then one-sided)", "one-sided alone", Setting(env={"one_sided": True}), ("balance",)),
    Change("reward (first output)", "eq. 4, then one-sided", Setting(rewarded="balance"), ("ttfo",)),
    Change("update (Q-learning)", "SARSA", Setting({"sarsa": True})),
    Change("first plan (drawn)", "equal bytes", Setting(warm=True)),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A model on a device, and the numbers of stages it is cut into."""

    model: str
    device: str
    profile: Profile
    counts: Sequence[int]


def ablate(cases: Sequence[Case], seeds: Sequence[int], console: Console, **where: Any) -> list[dict[str, Any]]:
    """Return the rows of the record: one for each variant and objective.

    Args:
        cases: What plans are learned for.
        seeds: Of each search.
        console: Where to show progress.
        where: What `run_all` takes to say where the searches run.
    """

    def done(what: str, jobs: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        results: list[Any] = []
        with console.progress(what, unit="jobs") as show:

            def report(result: Any) -> None:
                results.append(result)
                show(len(results), len(jobs))

            return iter(run_all(call, jobs, on_done=report, **where))

    proofs = done(
        "proving optima",
        [
            (optimum, case.profile, objective, count, LIMIT_S)
            for objective in OF_LOADING
            for case in cases
            for count in case.counts
        ],
    )
    optima: dict[str, list[list[Optimum]]] = {
        objective: [[next(proofs) for _ in case.counts] for case in cases] for objective in OF_LOADING
    }
    searches = done(
        "searching",
        [
            (learn, case.profile, objective, case.counts, seed, variant.setting)
            for variant in VARIANTS
            for objective in variant.objectives
            for case in cases
            for seed in seeds
        ],
    )
    rows = []
    for variant in VARIANTS:
        for objective in variant.objectives:
            found = [[next(searches) for _ in seeds] for _ in cases]
            rows.append(_row(variant, objective, cases, found, optima[objective]))
    return rows


def _row(
    variant: Change,
    objective: str,
    cases: Sequence[Case],
    found: Sequence[Sequence[Learned]],
    optima: Sequence[Sequence[Optimum]],
) -> dict[str, Any]:
    """Return the row of one change: what was learned of each case with each seed, beside the optima."""
    plans = [
        _plans(case, place, best, learned)
        for case, learned, proved in zip(cases, found, optima, strict=True)
        for place, best in enumerate(proved)
    ]
    search_s = [each.search_s for learned in found for each in learned]
    return {
        "factor": variant.factor,
        "value": variant.value,
        "objective": objective,
        "figures": figures(plans, search_s),
        "search_s": search_s,
        "plans": plans,
    }


def _plans(case: Case, place: int, best: Optimum, learned: Sequence[Learned]) -> dict[str, Any]:
    """Return what the record says about the plans of all seeds for one number of stages."""
    plans = [each.plans[place] for each in learned]
    return {
        "model": case.model,
        "device": case.device,
        "num_stages": case.counts[place],
        "optimum_s": best.value_s,
        "bound_s": best.value_s if best.proved else best.bound_s,
        "learned_s": [plan.value_s for plan in plans],
        "best_at": [plan.best_at for plan in plans],
        "episodes": [plan.episodes for plan in plans],
        "stopped": [plan.stopped for plan in plans],
    }


def figures(plans: Sequence[Mapping[str, Any]], search_s: Sequence[float]) -> dict[str, Any]:
    """Return what the plans of one variant come to: their ratios to the optimum, and what they cost to learn.

    Where the optimum is not proved, the ratio is to the best plan of the search for it.
    """
    ratios = [learned_s / each["optimum_s"] for each in plans for learned_s in each["learned_s"]]
    return {
        "num_plans": len(ratios),
        "mean_ratio": statistics.fmean(ratios),
        "worst_ratio": max(ratios),
        "num_missed": sum(ratio > 1 + MISSED for ratio in ratios),
        "num_proved": sum(reason == "proved" for each in plans for reason in each["stopped"]),
        "median_best_at": statistics.median(number for each in plans for number in each["best_at"]),
        "median_episodes": statistics.median(number for each in plans for number in each["episodes"]),
        "mean_search_s": statistics.fmean(search_s),
    }


def main(words: Sequence[str] | None = None) -> int:
    """Run the ablation, show it, and write its record."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("ablation", __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--device", action="append", help=f"default: {' and '.join(DEVICES)}")
    parser.add_argument(
        "--seeds", type=at_least(1), default=SEEDS, metavar="N", help="seeds 0 to N-1 (default: %(default)s)"
    )
    take_workers(parser)
    options = parser.parse_args(words)
    console = Console(json=False)
    try:
        check_workers(options)
        cases = [_case(model, device) for model in options.models or MODELS for device in options.device or DEVICES]
        rows = ablate(cases, range(options.seeds), console, workers=options.jobs, cluster=options.cluster)
    except UsageError as error:
        parser.error(str(error))
    except SplitloadError as error:
        console.note(f"{parser.prog}: {error}")
        return 1
    if options.output:
        write_record(options.output, "ablation", "splitload.studies.ablation", words, rows)
    for row in rows:
        found = row["figures"]
        console.print(
            f"{row['objective']}, {row['factor']}: {row['value']}: {found['num_plans']} plans, ÷ optimum mean "
            f"{found['mean_ratio']:.4f}, worst {found['worst_ratio']:.4f}, {found['num_missed']} missed; median "
            f"episodes {found['median_best_at']:.0f} to the best, {found['median_episodes']:.0f} to the stop; "
            f"{found['mean_search_s']:.1f} s a search"
        )
    return 0


def _case(model: str, device_name: str) -> Case:
    source, profile = profile_of(model, device_name, user_cache())
    return Case(source.name, device_name, profile, [count for count in STAGES if count <= profile.num_blocks])


if __name__ == "__main__":
    raise SystemExit(main())
