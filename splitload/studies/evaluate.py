"""How near learned plans come to the exact optimum: `python -m splitload.studies.evaluate --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitload.agents.exact_ttfo import Optimum
from splitload.base.cache import user_cache
from splitload.base.errors import SplitloadError, UsageError
from splitload.commands.console import Console
from splitload.devices import names
from splitload.frontends import zoo
from splitload.plan.objectives import OF_LOADING
from splitload.plan.profile import Profile
from splitload.planner.agents import LEARNERS
from splitload.planner.optimum import optimum
from splitload.planner.parallel import run_all
from splitload.planner.search import Search
from splitload.studies.optimality import Learned, Setting, call, figures, learn
from splitload.studies.records import write_record
from splitload.studies.study import at_least, check_workers, profile_of, study_parser, take_workers

LIMIT_S = 20.0  # for the proof that a plan is optimal
TARGET_P90, TARGET_WORST = 1.01, 1.03  # learned ÷ optimum, over all plans


@dataclass(frozen=True, slots=True)
class Case:
    """One model on one device for one objective, and how it is evaluated.

    Attributes:
        model: Name and hash of the model.
        device: Name of the device.
        profile: Costs of the model on the device.
        objective: What plans are valued by.
        agents: Who learns.
        counts: The numbers of stages.
        seeds: Seeds of each agent.
        limit_s: Seconds for each proof that a plan is optimal.
    """

    model: tuple[str, str]
    device: str
    profile: Profile
    objective: str
    agents: Sequence[str]
    counts: Sequence[int]
    seeds: Sequence[int]
    limit_s: float

    def jobs(self) -> list[tuple[Any, ...]]:
        """Return the arguments of `call`: first the optima, then the searches of each agent."""
        optima = [(optimum, self.profile, self.objective, count, self.limit_s) for count in self.counts]
        return optima + [
            (
                learn,
                self.profile,
                self.objective,
                self.counts,
                seed,
                Setting({"sarsa": agent == "sarsa"}, gives_up=True),
            )
            for agent in self.agents
            for seed in self.seeds
        ]

    def row(self, results: Sequence[Any]) -> dict[str, Any]:
        """Return what the record says about this case, given what its jobs returned."""
        optima: Sequence[Optimum] = results[: len(self.counts)]
        searches: Sequence[Learned] = results[len(self.counts) :]
        by_agent = {
            agent: searches[place * len(self.seeds) : (place + 1) * len(self.seeds)]
            for place, agent in enumerate(self.agents)
        }
        stages = []
        for place, (count, best) in enumerate(zip(self.counts, optima, strict=True)):
            plans = {agent: [each.plans[place] for each in found] for agent, found in by_agent.items()}
            learned_s = [plan.value_s for each in plans.values() for plan in each]
            stages.append(
                {
                    "num_stages": count,
                    "known_s": best.value_s if best.proved else min(best.value_s, *learned_s),
                    "bound_s": best.value_s if best.proved else best.bound_s,
                    "proved": best.proved,
                    "learned_s": {agent: [plan.value_s for plan in each] for agent, each in plans.items()},
                    "stopped": {agent: [plan.stopped for plan in each] for agent, each in plans.items()},
                    "episodes": {agent: [plan.episodes for plan in each] for agent, each in plans.items()},
                }
            )
        return {
            "model": self.model[0],
            "model_sha256": self.model[1],
            "device": self.device,
            "source": self.profile.source,
            "num_blocks": self.profile.num_blocks,
            "objective": self.objective,
            "limit_s": self.limit_s,
            "seeds": list(self.seeds),
            "search_s": {agent: [each.search_s for each in found] for agent, found in by_agent.items()},
            "figures": {agent: figures(stages, agent) for agent in self.agents},
            "stages": stages,
        }


def main(words: Sequence[str] | None = None) -> int:
    """Evaluate models on devices, write a record, and return 1 where the plans miss their target."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("evaluate", __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: every zoo model")
    parser.add_argument("--device", action="append", help="default: every simulated one")
    parser.add_argument("--objective", action="append", choices=OF_LOADING, help="default: both")
    parser.add_argument("--agent", action="append", choices=LEARNERS, help="default: q-learning")
    parser.add_argument(
        "--seeds", type=at_least(1), default=10, metavar="N", help="seeds 0 to N-1 (default: %(default)s)"
    )
    parser.add_argument("--max-stages", type=at_least(1), metavar="K", help="default: as 'splitload train' has it")
    parser.add_argument(
        "--limit", type=float, default=LIMIT_S, metavar="S", help="seconds for each proof (default: %(default)s)"
    )
    take_workers(parser)
    options = parser.parse_args(words)
    if not options.limit >= 0:
        parser.error(f"--limit must be a number of seconds, not negative; it is {options.limit}")
    console = Console(json=False)
    try:
        check_workers(options)
        rows = evaluate(options, console)
    except UsageError as error:
        parser.error(str(error))
    except SplitloadError as error:
        console.note(f"{parser.prog}: {error}")
        return 1
    if options.output:
        write_record(options.output, "search", "splitload.studies.evaluate", words, rows, schema_version=2)
    missed = False
    for agent in options.agent or LEARNERS[:1]:
        stages = [stage for row in rows for stage in row["stages"]]
        found = figures(stages, agent)
        slowest_s = max(max(row["search_s"][agent]) for row in rows)
        console.print(_line(f"all, {agent}", found, slowest_s))
        missed |= found["p90_ratio"] > TARGET_P90 or found["worst_ratio"] > TARGET_WORST
    return int(missed)


def evaluate(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Return the rows of the record, each told of on the console when it is complete.

    Raises:
        SplitloadError: If a model or device cannot be read, or the cluster does not do.
    """
    cases = [
        case
        for model in options.models or [f"zoo:{name}" for name in zoo.names()]
        for device in options.device or [name for name in names() if name != "host"]
        for case in _cases(model, device, options)
    ]
    rows: list[dict[str, Any]] = []
    waiting: list[Any] = []

    def report(result: Any) -> None:
        case = cases[len(rows)]
        waiting.append(result)
        if len(waiting) == len(case.jobs()):
            rows.append(case.row(waiting))
            waiting.clear()
            for agent in case.agents:
                title = f"{case.model[0]} on {case.device}, {case.objective}, {agent}"
                console.print(_line(title, rows[-1]["figures"][agent], max(rows[-1]["search_s"][agent])))

    jobs = [job for case in cases for job in case.jobs()]
    run_all(call, jobs, workers=options.jobs, cluster=options.cluster, on_done=report)
    return rows


def _cases(model: str, device_name: str, options: argparse.Namespace) -> list[Case]:
    """Return the cases of a model on a device, one for each objective."""
    source, profile = profile_of(model, device_name, user_cache())
    return [
        Case(
            (source.name, source.sha256),
            device_name,
            profile,
            objective,
            options.agent or LEARNERS[:1],
            Search(profile, objective=objective, max_stages=options.max_stages).counts,
            range(options.seeds),
            options.limit,
        )
        for objective in options.objective or OF_LOADING
    ]


def _line(title: str, found: Mapping[str, Any], slowest_s: float) -> str:
    """Return the figures of an agent's plans as one line."""
    line = (
        f"{title}: {found['num_plans']} plans, {found['num_outdone']} others given up; learned ÷ optimum p90 "
        f"{found['p90_ratio']:.4f}, worst {found['worst_ratio']:.4f}; {found['num_proved_by_agent']} proved by "
        f"learning; {found['num_optima_proved']} of {found['num_optima']} optima proved"
    )
    if found["largest_gap"] is not None:
        line += f", others within {found['largest_gap']:.2%}, worst ÷ bound {found['worst_over_bound']:.4f}"
    return f"{line}; slowest search {slowest_s:.1f} s"


if __name__ == "__main__":
    raise SystemExit(main())
