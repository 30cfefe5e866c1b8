"""One search for each of several seeds, beside each other, of which the best plan is taken."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitload.base.errors import UsageError
from splitload.base.phrases import milliseconds
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.parallel import check_cluster, run_all
from splitload.planner.report import Report
from splitload.planner.request import LEARNERS
from splitload.planner.search import Search

SEEDED = (*LEARNERS, "annealing", "random")


@dataclass(frozen=True, slots=True)
class SeedRun:
    """What the search of one seed came to.

    Attributes:
        seed: The seed.
        partition: Its plan.
        episodes: Of a learning agent, 0 for the others.
        search_s: Seconds the search took.
        value_s: Load of the slowest stage alone, or the time to first output, in seconds.
        deciding_s: What decides between plans of different numbers of stages, in seconds, see `Search.seconds`.
    """

    seed: int
    partition: Partition
    episodes: int
    search_s: float
    value_s: float
    deciding_s: float

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints of it."""
        return {
            "seed": self.seed,
            "value_s": self.value_s,
            "num_stages": self.partition.num_stages,
            "episodes": self.episodes,
            "search_s": self.search_s,
        }


def check_seeds(options: argparse.Namespace) -> None:
    """Raise what is wrong with `--seeds`, `--jobs` and `--cluster`, before anything is measured.

    Raises:
        UsageError: If they do not fit each other or the rest of the command.
        SplitloadError: If there is no cluster.
    """
    if options.seeds == 1:
        if options.jobs is not None or options.cluster is not None:
            raise UsageError("--jobs and --cluster share out the searches of several seeds: give --seeds as well")
        return
    if options.split_points is not None:
        raise UsageError("--seeds searches, and --split-points gives a plan: leave one of them out")
    if options.agent not in SEEDED:
        raise UsageError(f"--seeds: '{options.agent}' finds the same for every seed; others do for {', '.join(SEEDED)}")
    if options.cluster is not None:
        if options.jobs is not None:
            raise UsageError("give --jobs or --cluster, not both: a cluster runs as many searches as it can")
        check_cluster(options.cluster)


def search_seeds(
    options: argparse.Namespace, settings: Mapping[str, Any], profile: Profile, report: Report, runs: list[SeedRun]
) -> SeedRun:
    """Search with `--seeds` seeds from `--seed` on, and return the best run.

    Args:
        options: Of `splitload train`.
        settings: The arguments of each `Search`, but for its profile and seed.
        profile: Costs of the model on the device.
        report: Where to show progress.
        runs: Gets each run, in order of the seeds, when it is done; so an interrupt leaves those that are.
    """
    seeds = range(options.seed, options.seed + options.seeds)
    with report.progress("search", unit="seeds") as show:

        def after_search(run: SeedRun) -> None:
            runs.append(run)
            show(len(runs), len(seeds), f"best {milliseconds(best_of(runs).value_s)}")

        jobs = [(profile, seed, settings) for seed in seeds]
        run_all(run_seed, jobs, workers=options.jobs, cluster=options.cluster, on_done=after_search)
    return best_of(runs)


def run_seed(profile: Profile, seed: int, settings: Mapping[str, Any]) -> SeedRun:
    """Search with one seed; runs wherever `run_all` puts it."""
    search = Search(profile, seed=seed, **settings)
    start = time.perf_counter()
    partition = search.plan()
    search_s = time.perf_counter() - start
    episodes = search.learned.episodes if search.learned else 0
    return SeedRun(seed, partition, episodes, search_s, search.value_s(partition), search.seconds(partition))


def best_of(runs: Sequence[SeedRun]) -> SeedRun:
    """Return the run whose plan is done first; of equals the one with the smallest value, then the lowest seed."""
    return min(runs, key=lambda run: (run.deciding_s, run.value_s, run.seed))
