"""How near `splitload train` comes to the optimum, as users run it: `python -m splitload.studies.as_trained --help`."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from splitload.agents.exact_ttfo import Optimum
from splitload.base.cache import user_cache
from splitload.commands.console import Console
from splitload.devices import names
from splitload.frontends import zoo
from splitload.plan.objectives import OF_LOADING
from splitload.plan.profile import Profile
from splitload.planner.optimum import least_s_of, optimum
from splitload.planner.parallel import run_all
from splitload.planner.search import Search
from splitload.studies.optimality import call, trained_figures
from splitload.studies.study import (
    at_least,
    check_workers,
    errors_in_one_line,
    growing_record,
    profile_of,
    study_parser,
    take_workers,
)

SEEDS, FIRST_SEED = 20, 0
LIMIT_S = 20.0  # for the proof that a plan is optimal
TARGET_P90, TARGET_WORST, TARGET_S = 1.005, 1.02, 5.0  # learned ÷ exact, and the seconds of a whole search


@dataclass(frozen=True, slots=True)
class Trained:
    """What one search came to, as `splitload train` runs it without further options.

    Attributes:
        seed: Its seed.
        num_stages: Stages of the plan that was learned, and that `--agent q-learning` takes.
        learned_s: What the objective makes small of it, in seconds.
        split_points: Where it is cut.
        taken_stages: Stages of the plan that is taken.
        found_by: Who found that.
        taken_s: What the objective makes small of that, in seconds.
        learned_deciding_s: What decides between numbers of stages, in seconds, of the plan that was learned.
        taken_deciding_s: And of the plan that is taken.
        episodes: Episodes of the learning agent.
        learn_s: Seconds that learning took.
        search_s: Seconds of the whole search, with those of the other agents and of what stands beside the plan.
    """

    seed: int
    num_stages: int
    learned_s: float
    split_points: tuple[int, ...]
    taken_stages: int
    found_by: str
    taken_s: float
    learned_deciding_s: float
    taken_deciding_s: float
    episodes: int
    learn_s: float
    search_s: float


@dataclass(frozen=True, slots=True)
class Case:
    """One profile and one objective."""

    profile: Profile
    objective: str


def search_once(profile: Profile, objective: str, seed: int) -> Trained:
    """Search with one seed, all else as by default."""
    start = time.perf_counter()
    search = Search(profile, objective=objective, seed=seed)
    found = search.run()
    search_s = time.perf_counter() - start
    learned = search.best
    assert learned is not None  # noqa: S101 - a search that found nothing has raised
    assert search.learned is not None  # noqa: S101
    return Trained(
        seed,
        learned.num_stages,
        least_s_of(profile, objective, learned),
        learned.split_points,
        found.partition.num_stages,
        found.found_by,
        least_s_of(profile, objective, found.partition),
        search.deciding_s(learned),
        search.deciding_s(found.partition),
        found.episodes,
        search.learn_s,
        search_s,
    )


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Search, write a record, and return 1 where the plans miss their target."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("as_trained", __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: every zoo model")
    parser.add_argument("--device", action="append", help="default: every simulated one, unless profiles are given")
    parser.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="FILE",
        help="a profile that 'splitload profile -o' wrote, such as an emulated device's; may be given again",
    )
    parser.add_argument("--objective", action="append", choices=OF_LOADING, help="default: both")
    parser.add_argument("--seeds", type=at_least(1), default=SEEDS, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--first-seed", type=at_least(0), default=FIRST_SEED, metavar="S", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--limit", type=float, default=LIMIT_S, metavar="S", help="seconds for each proof (default: %(default)s)"
    )
    take_workers(parser)
    options = parser.parse_args(words)
    console = Console(json=False)
    check_workers(options)
    rows: list[dict[str, Any]] = []
    with growing_record(options.output, "as_trained", "splitload.studies.as_trained", words) as add:
        for case in _cases(options):
            rows.append(_row(case, options))
            add(rows[-1:])
            title = f"{rows[-1]['model']} on {rows[-1]['device']}, {case.objective}"
            console.print(_line(title, trained_figures(rows[-1:])))
    found = trained_figures(rows)
    console.print(_line("all", found))
    aims = {"p90_ratio": TARGET_P90, "worst_ratio": TARGET_WORST, "most_search_s": TARGET_S}
    return int(any(found[name] > aim for name, aim in aims.items()))


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield what is searched: profiles that are given, and those of models on devices."""
    given = [Profile.read(Path(file)) for file in options.profile]
    devices = options.device or ([] if given else [name for name in names() if name != "host"])
    models = options.models or [f"zoo:{name}" for name in zoo.names()]
    made = (profile_of(model, device, user_cache())[1] for model in models for device in devices)
    for profile in (*given, *made):
        for objective in options.objective or OF_LOADING:
            yield Case(profile, objective)


def _row(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Return what the record says about one case: the runs of all seeds, and the optima beside them."""
    profile, objective = case.profile, case.objective
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    where = {"workers": options.jobs, "cluster": options.cluster}
    runs: list[Trained] = []
    run_all(search_once, [(profile, objective, seed) for seed in seeds], on_done=runs.append, **where)
    best: dict[int, Trained] = {}
    for run in sorted(runs, key=lambda each: -each.learned_s):
        best[run.num_stages] = run
    taken_s = {run.taken_stages: run.taken_s for run in sorted(runs, key=lambda each: -each.taken_s)}
    optima: list[Optimum] = []
    jobs = [
        (optimum, profile, objective, count, options.limit, None, [run.split_points])
        for count, run in sorted(best.items())
    ]
    run_all(call, jobs, on_done=optima.append, **where)
    return {
        "model": profile.model,
        "model_sha256": profile.model_sha256,
        "device": profile.device,
        "source": profile.source,
        "num_blocks": profile.num_blocks,
        "threads": profile.contention.threads,
        "objective": objective,
        "limit_s": options.limit,
        "optima": [
            {
                "num_stages": count,
                "known_s": min(found.value_s, best[count].learned_s, taken_s.get(count, math.inf)),
                "bound_s": found.value_s if found.proved else found.bound_s,
                "proved": found.proved,
                "split_points": list(found.split_points),
            }
            for count, found in zip(sorted(best), optima, strict=True)
        ],
        "runs": [asdict(run) for run in runs],
    }


def _line(title: str, found: dict[str, Any]) -> str:
    """Return the figures as one line."""
    return (
        f"{title}: {found['num_plans']} plans, learned ÷ exact p90 {found['p90_ratio']:.4f}, worst "
        f"{found['worst_ratio']:.4f}; {found['num_proved']} beside a proved optimum, worst ÷ bound "
        f"{found['worst_over_bound']:.4f}; {found['num_taken']} taken as learned; learned within "
        f"{found['most_learn_s']:.1f} s, searched within {found['most_search_s']:.1f} s"
    )


if __name__ == "__main__":
    raise SystemExit(main())
