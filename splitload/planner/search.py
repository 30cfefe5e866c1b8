"""The search: a profile and an agent become a partition, beside what other agents would have found."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from splitload.agents.baselines import fixed_cuts
from splitload.agents.q_learning import QLearning
from splitload.agents.results import Plan, Progress, SearchResult
from splitload.agents.stopping import BEHIND, EQUAL
from splitload.base.errors import UsageError
from splitload.base.phrases import count_of
from splitload.envs.split import SplitEnv, fewest_stages, stages_there_are
from splitload.plan.ceiling import Ceiling
from splitload.plan.crowd_ceiling import CrowdCeiling
from splitload.plan.objectives import DEFAULT_OBJECTIVE, objective_named
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.agents import BASELINES, DEFAULT_AGENT, QUICK, agent_named
from splitload.planner.checkpoint_file import Checkpoint
from splitload.planner.found_plan import FoundPlan
from splitload.planner.least_ceiling import MOST_STAGES, check_ceiling
from splitload.planner.rivals import Rivals

WORTHWHILE = 0.1  # predictions are not better than that: a smaller gain is no reason to cut
MAX_STAGES, MANY_STAGES = 8, 16  # to look at: usually, and where so many promise `MANY_GAIN` over the usual
MANY_GAIN = 0.05
SHARED_LIMIT_S = 0.5  # for all numbers among which the best plan known is chosen


class Search:
    """Finds a partition on a profile; `best` holds the best plan so far at any time.

    The cuts of each number of stages are found by the objective's reward, and the number is taken for which
    `Objective.deciding_s` is smallest. A cut is made only where a tenth or more is gained, and a plan of more stages
    taken only where it gains `Objective.further_gain` over the one before.

    Args:
        profile: Costs of the model on the device.
        agent: One of `splitload.planner.agents.AGENTS`, or of its `BASELINES`.
        objective: One of `splitload.plan.objectives.OBJECTIVES`.
        max_stages: The most stages, at least 1; the model may have fewer. None: 8, or 16 where as many, cut
            by rule, promise a twentieth; or all where there are fewer.
        num_stages: If given, exactly so many stages, whether or not they pay; at most one for each block.
        seed: Seed of the agent, and of the random baseline.
        episodes: Most episodes in all, or None for the agent's own rule.
        trainable_from: First trainable block; the last stage of every plan begins there. None where none is trained.
        ceiling: What memory allows; no other plan is looked at, and numbers of stages begin with the least that fits.
            None where nothing limits it.

    Attributes:
        learn_s: Seconds that learning took; 0 before its end, and of agents that do not learn.

    Raises:
        UsageError: If `max_stages` is less than there must be, there is no such objective, or no plan fits under the
            ceiling.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        agent: str = DEFAULT_AGENT,
        objective: str = DEFAULT_OBJECTIVE,
        max_stages: int | None = None,
        num_stages: int | None = None,
        seed: int = 0,
        episodes: int | None = None,
        trainable_from: int | None = None,
        ceiling: Ceiling | None = None,
    ) -> None:
        self._profile = profile
        self._agent = agent
        self._objective = objective_named(objective)
        self._seed = seed
        self._episodes = episodes
        self._trainable_from = trainable_from
        self._ceiling = ceiling
        self._rivals = Rivals(profile, self._objective, seed, trainable_from, ceiling)
        limit = profile.num_blocks if trainable_from is None else trainable_from + 1
        if max_stages is not None:
            max_stages = stages_there_are(max_stages, profile.num_blocks, trainable_from)
        self._counts: Sequence[int]
        if ceiling is None:
            most = num_stages or max_stages or min(self._enough(limit), limit)
            self._counts = range(num_stages or fewest_stages(trainable_from), most + 1)
        else:
            self._counts = self._fitting(ceiling, num_stages, min(num_stages or max_stages or MOST_STAGES, limit))
            if max_stages is None and num_stages is None:
                self._counts = self._worthwhile(self._counts)
        self.learn_s = 0.0
        self._learner: QLearning | None = None
        self._plans: dict[int, Partition] = {}  # as well, of agents that do not learn, or take the best known

    def run(
        self, on_progress: Callable[[Progress], None] | None = None, checkpoint: Checkpoint | None = None
    ) -> FoundPlan:
        """Search, and value the baselines for the number of stages that was found.

        Args:
            on_progress: Called after each episode of a learning agent.
            checkpoint: Where a learning agent's search is kept, and resumed from; None for nowhere.

        Raises:
            KeyboardInterrupt: As it came; `best` then holds what was found.
            CheckpointError: If the checkpoint cannot be resumed from.
            OutputError: If the checkpoint cannot be written.
        """
        start = time.perf_counter()
        partition = self.plan(on_progress, checkpoint)
        episodes = self._learner.result().episodes if self._learner else 0
        search_s = time.perf_counter() - start
        return self.valued(partition, search_s=search_s, episodes=episodes, learned=self.learned_plan(partition))

    def plan(
        self, on_progress: Callable[[Progress], None] | None = None, checkpoint: Checkpoint | None = None
    ) -> Partition:
        """Search, and return the plan alone; see `run`."""
        agent, partition = agent_named(self._agent), None
        if agent.learner is not None:
            env = SplitEnv(
                self._profile,
                objective=self._objective.name,
                max_stages=self._counts[-1],
                trainable_from=self._trainable_from,
                ceiling=self._ceiling,
            )
            self._learner = agent.learner(env, self._seed)
            train = self._learner.train if checkpoint is None else partial(checkpoint.train, self._learner)
            start = time.perf_counter()
            train(num_stages=self._counts, episodes=self._episodes, decides=self._decides, on_progress=on_progress)
            self.learn_s = time.perf_counter() - start
            partition = self._best_known() if agent.takes_best else self.best
        elif agent.rule is not None:
            self._plans = {count: self._rivals.by_rule(agent.rule, count) for count in self._counts}
            partition = self._pick(self._plans.values())
        if partition is None:
            raise UsageError("no plan was found; give more --episodes")
        return partition

    def even(self, num_stages: int) -> Partition:
        """Return the plan of so many stages, or the most there can be, whose largest load is smallest."""
        return self._rivals.by_rule(QUICK["even_loads"], self._allowed(num_stages))

    def equal_bytes(self, num_stages: int) -> Partition:
        """Return the plan of so many stages, or the most there can be, whose weights are about equally large."""
        return self._rivals.by_rule(QUICK["uniform_bytes"], self._allowed(num_stages))

    def _allowed(self, num_stages: int) -> int:
        return max(min(num_stages, self._counts[-1]), self._counts[0])

    def pick(self, partitions: Sequence[Partition]) -> Partition:
        """Return the best of some plans: of each number of stages that is searched, and of these the one that pays."""
        best: dict[int, Partition] = {}
        for plan in [each for each in partitions if each.num_stages in self._counts] or [self.fewest]:
            if plan.num_stages not in best or self.value_s(plan) < self.value_s(best[plan.num_stages]):
                best[plan.num_stages] = plan
        self._plans = best
        return self._pick(best.values()) or self.fewest

    def valued(
        self,
        partition: Partition,
        *,
        search_s: float,
        episodes: int = 0,
        learned: Partition | None = None,
        found_by: str | None = None,
    ) -> FoundPlan:
        """Value a plan, and what the baselines give for as many stages.

        Args:
            partition: The plan.
            search_s: Seconds it took to find it.
            episodes: Episodes of a learning agent.
            learned: The plan of as many stages that was learned.
            found_by: Who found it; None for the agent, or where that takes the best known plan, for whose it is.
        """
        values: dict[str, float | None] = {"learned": None if learned is None else self.value_s(learned)}
        optimum = self._rivals.optimum(partition.num_stages, partition.split_points)
        rivals = {name: self._rivals.by_rule(rule, partition.num_stages) for name, rule in BASELINES.items()}
        values |= {name: self.value_s(plan) for name, plan in rivals.items()}
        if found_by is None and agent_named(self._agent).takes_best:
            others = (name for name, plan in rivals.items() if plan == partition)
            found_by = "q-learning" if partition == learned else next(others, None)
        more = self.fewest.num_stages + 1
        cut = (
            self._rivals.by_rule(BASELINES["exact"], more)
            if partition == self.fewest and more in self._counts
            else None
        )
        cut_s = None if cut is None else self.deciding_s(cut)
        bound_s = values["exact"] if optimum.proved else optimum.bound_s
        return FoundPlan(partition, found_by or self._agent, values, episodes, search_s, cut_s, bound_s)

    def whole(self, found: FoundPlan) -> FoundPlan:
        """Return what the search came to, with the plan of the fewest stages in the place of its plan."""
        learned = None if agent_named(self._agent).learner is None else self.fewest  # there is no other
        return self.valued(self.fewest, search_s=found.search_s, episodes=found.episodes, learned=learned)

    @property
    def fewest(self) -> Partition:
        """The plan of the fewest stages: the whole model, or what is frozen and what is trained."""
        return Partition(self._profile.num_blocks, fixed_cuts(self._trainable_from))

    @property
    def best(self) -> Partition | None:
        """The best plan so far, or None before the first."""
        plans = self.learned.plans.values() if self.learned else ()
        return self._pick(Partition(self._profile.num_blocks, plan.split_points) for plan in plans)

    @property
    def plans(self) -> dict[int, Partition]:
        """The best plan that was found for each number of stages; empty where nothing was searched."""
        return dict(self._plans) or self._learned_plans

    def learned_plan(self, partition: Partition) -> Partition | None:
        """Return the plan that was learned for as many stages as another one has; None where there is none."""
        return self._learned_plans.get(partition.num_stages)

    @property
    def _learned_plans(self) -> dict[int, Partition]:
        plans = self.learned.plans if self.learned else {}
        return {count: Partition(self._profile.num_blocks, plan.split_points) for count, plan in plans.items()}

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of stages that are searched."""
        return tuple(self._counts)

    @property
    def learned(self) -> SearchResult | None:
        """What the learning agent found so far, or None for other agents and before it began."""
        return self._learner.result() if self._learner else None

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this search from others, as JSON values; how long it may go on is no part of it."""
        text = json.dumps(self._profile.to_json(), sort_keys=True)
        return {
            "model": self._profile.model,
            "device": self._profile.device,
            "profile_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "objective": self._objective.name,
            "agent": self._agent,
            "num_stages": list(self._counts),
            "trainable_from": self._trainable_from,
            "seed": self._seed,
            **self._limits,
        }

    @property
    def _limits(self) -> dict[str, Any]:
        """What tells this search from one without a ceiling, or under another."""
        if self._ceiling is None:
            return {}
        needs_sha256 = hashlib.sha256(repr(self._ceiling.needs).encode()).hexdigest()
        limits: dict[str, Any] = {
            "ceiling_bytes": self._ceiling.ceiling_bytes,
            "arena_bytes": self._ceiling.arena_bytes,
        }
        if isinstance(self._ceiling, CrowdCeiling):
            limits["crowd_sha256"] = hashlib.sha256(repr(self._ceiling).encode()).hexdigest()
        return {**limits, "needs_sha256": needs_sha256}

    def value_s(self, partition: Partition) -> float:
        """Return `Objective.value_s` of a plan, in seconds: for people and JSON."""
        return self._objective.value_s(self._profile, partition, self._ceiling)

    def value_s_from(self, least_s: float, num_stages: int) -> float:
        """Return `value_s` of a plan of so many stages, of which `least_s` is what the learning agent made small."""
        return least_s / self._objective.scale(self._profile.contention, num_stages)

    def _enough(self, limit: int) -> int:
        """Return how many stages are worth looking at, with no more than `limit` blocks to cut at."""
        if limit < MANY_STAGES:
            return MAX_STAGES
        usual, many = (
            min(self.deciding_s(self._rivals.by_rule(rule, count)) for rule in QUICK.values())
            for count in (MAX_STAGES, MANY_STAGES)
        )
        return MANY_STAGES if many < (1 - MANY_GAIN) * usual else MAX_STAGES

    def _fitting(self, ceiling: Ceiling, num_stages: int | None, most: int) -> tuple[int, ...]:
        """Return the numbers of stages of which there are plans under the ceiling.

        Raises:
            UsageError: If there is none.
        """
        check_ceiling(ceiling, [block.name for block in self._profile.blocks], most, self._trainable_from)
        counts = ceiling.counts(most, self._trainable_from)
        if num_stages is not None and num_stages not in counts:
            raise UsageError(f"no plan of {count_of(num_stages, 'stage')} fits under the ceiling; others do: {counts}")
        return counts if num_stages is None else (num_stages,)

    def _worthwhile(self, counts: Sequence[int]) -> Sequence[int]:
        """Return the numbers of stages to look at: more than usual only where plans by rule promise further gain."""
        promised_s = [
            min(self.deciding_s(self._rivals.by_rule(rule, count)) for rule in QUICK.values()) for count in counts
        ]
        enough_s = min(promised_s) / (1 - self._objective.further_gain)
        enough = next(place for place, each_s in enumerate(promised_s) if each_s <= enough_s)
        return [count for place, count in enumerate(counts) if place <= enough or count <= MAX_STAGES]

    def _pick(self, partitions: Iterable[Partition]) -> Partition | None:
        """Return the partition whose number of stages pays: `WORTHWHILE` over a whole model, then `further_gain`."""
        picked: Partition | None = None
        for partition in sorted(partitions, key=lambda each: each.num_stages):
            gain = WORTHWHILE if picked == self.fewest else self._objective.further_gain
            if picked is None or self.deciding_s(partition) < (1 - gain) * self.deciding_s(picked):
                picked = partition
        return picked

    def deciding_s(self, partition: Partition) -> float:
        """Return `Objective.deciding_s` of a plan, in seconds: what decides between numbers of stages."""
        return self._objective.deciding_s(self._profile, partition, self._ceiling)

    def _decides(self, plan: Plan) -> float:
        """Return `deciding_s` of what a learning agent found."""
        return self.deciding_s(Partition(self._profile.num_blocks, plan.split_points))

    def looks_at(self, partition: Partition) -> bool:
        """Return whether a plan is one of those that are searched: by its number of stages, and under the ceiling."""
        return partition.num_stages in self._counts and (self._ceiling is None or self._ceiling.allows(partition))

    @property
    def deciding_key(self) -> str:
        """What `deciding_s` is called where it is measured."""
        return self._objective.deciding_key

    def pays(self, deciding_s: float) -> bool:
        """Return whether a cut whose `deciding_s` is so small is worthwhile in place of the fewest stages."""
        return deciding_s < (1 - WORTHWHILE) * self.deciding_s(self.fewest)

    def _best_known(self) -> Partition | None:
        """Return the best plan known, whoever found it; of equals the one that was learned.

        Numbers of stages whose learned plan is not far behind share half a second of proofs. The number that pays is
        then searched by all.
        """
        plans = self._learned_plans
        if not plans:
            return None
        least_s = min(map(self.deciding_s, plans.values()))
        near = [count for count, plan in plans.items() if self.deciding_s(plan) <= (1 + BEHIND) * least_s]
        for count in near:
            best = self._rivals.optimum(count, plans[count].split_points, SHARED_LIMIT_S / len(near))
            plans[count] = self._better(plans[count], Partition.of(self._profile.num_blocks, best.split_points))
        picked = self._pick(plans.values())
        assert picked is not None  # noqa: S101 - there are plans
        count = picked.num_stages
        self._rivals.optimum(count, picked.split_points)
        for rule in BASELINES.values():
            plans[count] = self._better(plans[count], self._rivals.by_rule(rule, count))
        self._plans = plans
        return plans[count]

    def _better(self, plan: Partition, other: Partition) -> Partition:
        """Return the plan, or another one of as many stages that is better beyond rounding."""
        return other if self.value_s(other) < (1 - EQUAL) * self.value_s(plan) else plan
