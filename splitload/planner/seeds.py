"""One search for each of several seeds, beside each other, of which the best plan is taken."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitload.base.phrases import milliseconds
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.parallel import run_all
from splitload.planner.report import Report
from splitload.planner.request import TrainRequest
from splitload.planner.search import Search


@dataclass(frozen=True, slots=True)
class SeedRun:
    """What the search of one seed came to.

    Attributes:
        seed: The seed.
        partition: Its plan.
        episodes: Of a learning agent, 0 for the others.
        search_s: Seconds the search took.
        value_s: See `Objective.value_s`.
        learned: The plan that was learned for as many stages; None of agents that do not learn.
        deciding_s: What decides between plans of different numbers of stages, in seconds, see `Search.deciding_s`.
    """

    seed: int
    partition: Partition
    episodes: int
    search_s: float
    value_s: float
    deciding_s: float
    learned: Partition | None

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints of it."""
        return {
            "seed": self.seed,
            "value_s": self.value_s,
            "num_stages": self.partition.num_stages,
            "episodes": self.episodes,
            "search_s": self.search_s,
        }


def search_seeds(
    request: TrainRequest, settings: Mapping[str, Any], profile: Profile, report: Report, runs: list[SeedRun]
) -> SeedRun:
    """Search with as many seeds as are asked for, and return the best run.

    Args:
        request: What is asked for.
        settings: The arguments of each `Search`, but for its profile and seed.
        profile: Costs of the model on the device.
        report: Where to show progress.
        runs: Gets each run, in order of the seeds, when it is done; so an interrupt leaves those that are.
    """
    seeds = range(request.seed, request.seed + request.seeds)
    with report.progress("search", unit="seeds") as show:

        def after_search(run: SeedRun) -> None:
            runs.append(run)
            show(len(runs), len(seeds), f"best {milliseconds(best_of(runs).value_s)}")

        jobs = [(profile, seed, settings) for seed in seeds]
        run_all(run_seed, jobs, workers=request.jobs, cluster=request.cluster, on_done=after_search)
    return best_of(runs)


def run_seed(profile: Profile, seed: int, settings: Mapping[str, Any]) -> SeedRun:
    """Search with one seed; runs wherever `run_all` puts it."""
    search = Search(profile, seed=seed, **settings)
    start = time.perf_counter()
    partition = search.plan()
    search_s = time.perf_counter() - start
    episodes = search.learned.episodes if search.learned else 0
    value_s, deciding_s = search.value_s(partition), search.deciding_s(partition)
    return SeedRun(seed, partition, episodes, search_s, value_s, deciding_s, search.learned_plan(partition))


def best_of(runs: Sequence[SeedRun]) -> SeedRun:
    """Return the run whose plan is done first; of equals the one with the smallest value, then the lowest seed."""
    return min(runs, key=lambda run: (run.deciding_s, run.value_s, run.seed))
