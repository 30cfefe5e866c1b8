"""What an objective is: one object with the value of a plan, the reward of a learner, and the optimum there is.

Each objective is a file of `splitload.plan.objectives`. A search names none but the default of that package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from splitload.plan.ceiling import Ceiling
from splitload.plan.costs import CostMatrices, CostRows
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.plan.schedule import Contention

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SplitPoints = tuple[int, ...]


class Best(NamedTuple):
    """The best plan that was found, and what no plan can be better than.

    Attributes:
        split_points: The ends of all its stages but the last, in blocks.
        value_s: What the objective makes small, in seconds.
        bound_s: Seconds that no plan of as many stages is below; equal to `value_s` where that is proved.
    """

    split_points: SplitPoints
    value_s: float
    bound_s: float


class Solvers(Protocol):
    """The exact searches that an objective may use; `splitload.agents` has them, and says what they take and return.

    They are handed in, as agents know nothing of plans and plans nothing of agents.
    """

    def balance(
        self,
        load: NDArray[np.float64],
        num_stages: int,
        trainable_from: int | None = None,
        *,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[SplitPoints, float]:
        """Return the split points whose largest load is smallest, and that load in seconds."""
        ...

    def ttfo(
        self,
        load: NDArray[np.float64],
        infer: NDArray[np.float64],
        num_stages: int,
        threads: int,
        slowdown: float,
        trainable_from: int | None = None,
        *,
        read: NDArray[np.float64] | None = None,
        limit_s: float = 10.0,
        starts: Sequence[Sequence[int]] = (),
        allowed: NDArray[np.bool_] | None = None,
    ) -> SolvedBest:
        """Return the split points that answer first, with their time to first output and a bound."""
        ...

    def steady(
        self,
        cost: NDArray[np.float64],
        largest: NDArray[np.float64],
        num_stages: int,
        trainable_from: int | None = None,
        *,
        allowed: NDArray[np.bool_] | None = None,
        limit_s: float = 10.0,
    ) -> SolvedBest:
        """Return the split points with the least sum of one matrix and maximum of the other, and a bound."""
        ...


class SolvedBest(Protocol):
    """What a solver returns: what `Best` holds."""

    @property
    def split_points(self) -> SplitPoints:
        """See `Best`."""
        ...

    @property
    def value_s(self) -> float:
        """See `Best`."""
        ...

    @property
    def bound_s(self) -> float:
        """See `Best`."""
        ...


class Rewards(ABC):
    """Pays an environment for the stages of one plan after the other.

    Attributes:
        illegal: What an illegal action earns: less than the return of every legal episode.
    """

    illegal: float

    @abstractmethod
    def begin(self, num_stages: int, tolerance_s: float | None, one_sided: bool) -> None:
        """Start the plan of an episode.

        Args:
            num_stages: C, how many stages it has.
            tolerance_s: ε in seconds, where the episode has one of its own.
            one_sided: Whether a stage may always load faster than its target.
        """

    @abstractmethod
    def pay(self, start: int, end: int) -> float:
        """Return the reward of the next stage, which holds the blocks `[start, end)`; it is not positive."""

    @abstractmethod
    def outcome(self, bounds: Sequence[int]) -> dict[str, Any]:
        """Return what `info` says of a complete plan, once all its stages are paid.

        Args:
            bounds: The C + 1 block indices that enclose the stages.

        Returns:
            `value_s`, `load_makespan_s` and `separable`, which `SplitEnv` documents, and what is the objective's own.
        """


class Objective(ABC):
    """What a plan is to make small.

    Attributes:
        name: What users call it; the name of its file.
        wish: What it asks for, in a few words for `--help`.
        value_name: What `value_s` is, as the head of a column.
        value_phrase: The same in a phrase, with `{count}` where the number of stages stands.
        done_verb: What stages do at `deciding_s`: "they … after 20 ms".
        deciding_key: What a measured sample calls `deciding_s`.
        return_name: What a learning curve calls the return of an episode.
        of_crowd: Whether it is of a crowd, and needs a `splitload.plan.crowd_ceiling.CrowdCeiling`.
        further_gain: By what share of `deciding_s` more stages must be better than fewer, where both are a cut.
    """

    name: ClassVar[str]
    wish: ClassVar[str]
    value_name: ClassVar[str]
    value_phrase: ClassVar[str]
    done_verb: ClassVar[str]
    deciding_key: ClassVar[str]
    return_name: ClassVar[str]
    of_crowd: ClassVar[bool] = False
    further_gain: ClassVar[float]

    @abstractmethod
    def value_s(self, profile: Profile, partition: Partition, ceiling: Ceiling | None = None) -> float:
        """Return what a plan, which fits under the ceiling, is worth in seconds, for people and JSON.

        Among plans of as many stages it orders them as `least_s` does.
        """

    @abstractmethod
    def scale(self, contention: Contention, num_stages: int) -> float:
        """Return what is made small, in seconds for each second of `value_s`, for plans of so many stages."""

    def least_s(self, profile: Profile, partition: Partition, ceiling: Ceiling | None = None) -> float:
        """Return what is made small, in seconds: by agents, and by `optimum`."""
        return self.scale(profile.contention, partition.num_stages) * self.value_s(profile, partition, ceiling)

    @abstractmethod
    def deciding_s(self, profile: Profile, partition: Partition, ceiling: Ceiling | None = None) -> float:
        """Return what decides between plans of different numbers of stages, in seconds."""

    @abstractmethod
    def valuer(self, costs: CostRows, num_stages: int) -> Callable[[SplitPoints], float]:
        """Return what gives `least_s` of split points that fit, as fast as Python can, for plans of so many stages."""

    @abstractmethod
    def rewards(self, costs: CostRows, max_stages: int, tolerance: float) -> Rewards:
        """Return what pays a learner.

        Args:
            costs: Of the model on the device.
            max_stages: The most stages of a plan.
            tolerance: ε as a share of what one stage should take, not negative.
        """

    @abstractmethod
    def optimum(
        self,
        costs: CostMatrices,
        num_stages: int,
        solvers: Solvers,
        *,
        trainable_from: int | None,
        limit_s: float,
        starts: Sequence[Sequence[int]],
    ) -> Best:
        """Return the best plan of so many stages, and a bound where the time for a proof was over.

        Args:
            costs: Of the model on the device; stages that its ceiling does not allow are not planned.
            num_stages: k, for which there is a plan.
            solvers: The exact searches.
            trainable_from: First trainable block; the last stage begins there. None where none is trained.
            limit_s: Seconds for the proof.
            starts: Plans to begin with.
        """
