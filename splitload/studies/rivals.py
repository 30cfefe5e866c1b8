"""Learned plans beside the baselines', measured on this machine: `python -m splitload.studies.rivals --help`."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.scratch import scratch_folder
from splitload.build.assemble import VariantPlan
from splitload.commands.console import Console
from splitload.devices import Measuring
from splitload.devices.host import HostDevice
from splitload.frontends import open_source, zoo
from splitload.frontends.onnx import Source, load_graph
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.agents import BASELINES
from splitload.planner.measure_plans import measure_plans
from splitload.planner.search import Search
from splitload.planner.trial import Trial, choose_measured
from splitload.studies.bench_tables import TARGETED
from splitload.studies.records import write_record
from splitload.studies.study import at_least, errors_in_one_line, study_parser

RUNS = 15
COUNTS = (None, 2, 4)  # stages: as many as the search takes, then so many
RIVALS = tuple(name for name in BASELINES if name != "exact")  # which is a bound, for what is predicted


class Contest:
    """Learned plans of one model against those of the baselines, measured in the same rounds.

    Args:
        source: The model.
        graph: Its native graph.
        profile: Its profile on this machine.
        device: What measures the plans.
        seed: Of the agent, and of baselines that draw.
        runs: Samples of every plan.
        console: Where to tell what is done.
        cache: The user's cache folder.
    """

    def __init__(
        self,
        source: Source,
        graph: ModelGraph,
        profile: Profile,
        *,
        device: Measuring,
        seed: int,
        runs: int,
        console: Console,
        cache: Path,
    ) -> None:
        self._source = source
        self._graph = graph
        self._profile = profile
        self._device = device
        self._seed = seed
        self._runs = runs
        self._console = console
        self._cache = cache

    def row(self, num_stages: int | None) -> dict[str, Any]:
        """Search, measure, and return a row of the record.

        Plans that are the same are measured once.

        Args:
            num_stages: How many stages every plan has. None: as many as each search takes; the learned plan is then
                tried beside the whole model and given up if it does not pay, as `splitload train` does on this machine.

        Raises:
            SplitloadError: If a plan cannot be built or measured.
        """
        learned, trial = self._learned(num_stages)
        partitions = {"learned": learned, **{name: self._search(name, num_stages).run().partition for name in RIVALS}}
        named: dict[Partition, list[str]] = {}
        for name, partition in partitions.items():
            named.setdefault(partition, []).append(name)
        threads = self._profile.contention.threads
        plans = [VariantPlan(self._graph, partition, threads) for partition in named]
        measured = measure_plans(self._device, self._source, plans, self._runs, self._console, self._cache, feeds={})
        taken_s = {
            partition: [sample["ttfo_s"] for sample in samples]
            for partition, samples in zip(named, measured, strict=True)
        }
        return {
            "model": self._source.name,
            "model_sha256": self._source.sha256,
            "num_stages": num_stages,
            "threads": threads,
            "trial": None if trial is None else trial.to_json(),
            "plans": [
                {
                    "names": names,
                    "split_points": list(partition.split_points),
                    "predicted_s": self._profile.schedule(partition).ttfo_s,
                    "ttfo_s": taken_s[partition],
                }
                for partition, names in named.items()
            ],
            **compare({name: taken_s[partition] for name, partition in partitions.items()}),
        }

    def _learned(self, num_stages: int | None) -> tuple[Partition, Trial | None]:
        """Return the plan that `splitload train` takes on this machine, and the trial that it stood, if any."""
        search = self._search("q-learning", num_stages)
        found = search.run()
        if num_stages is not None:
            return found.partition, None
        threads = self._profile.contention.threads
        found, trial = choose_measured(
            self._device, search, found, self._source, self._graph, threads, self._console, self._cache, feeds={}
        )
        return found.partition, trial

    def _search(self, agent: str, num_stages: int | None) -> Search:
        return Search(self._profile, agent=agent, objective="ttfo", seed=self._seed, num_stages=num_stages)


def compare(samples_s: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return medians in seconds, of the learned plan and of every baseline, and the learned one ÷ the least of those.

    Args:
        samples_s: The samples of "learned", and of each baseline.
    """
    medians_s = {name: statistics.median(taken_s) for name, taken_s in samples_s.items()}
    learned_s = medians_s.pop("learned")
    return {"learned_s": learned_s, "baselines_s": medians_s, "ratio": learned_s / min(medians_s.values())}


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Measure learned plans and their rivals, and write a record."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("rivals", __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: the models that targets are set for")
    parser.add_argument("--runs", type=at_least(1), default=RUNS, metavar="N", help="samples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the searches (default: %(default)s)")
    options = parser.parse_args(words)
    console = Console(json=False)
    cache = user_cache()
    rows = []
    for model in options.models or [model for name in zoo.names() if (model := f"zoo:{name}") in TARGETED]:
        source = open_source(model, cache)
        graph = load_graph(source, "native", cache)
        with scratch_folder(cache, ".rivals-") as folder:  # a profile of now, beside what is measured now
            device = HostDevice(folder)
            profile = device.profile(graph)
        contest = Contest(
            source,
            graph,
            profile,
            device=device,
            seed=options.seed,
            runs=options.runs,
            console=console,
            cache=cache,
        )
        for count in COUNTS:
            if count is not None and count > profile.num_blocks:
                continue
            row = contest.row(count)
            console.print(
                f"{source.name:<14} {'any' if count is None else count:>3} stages, {len(row['plans'])} plans: "
                f"learned {row['learned_s'] * 1e3:.1f} ms, ÷ best baseline {row['ratio']:.3f}"
            )
            rows.append(row)
    if options.output:
        write_record(options.output, "rivals", "splitload.studies.rivals", words, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
