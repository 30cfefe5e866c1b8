"""The learning curve of a search as CSV: one row for each episode."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from splitload.agents.results import SearchResult
from splitload.plan.objectives import objective_named


def curve_csv(result: SearchResult, objective: str, value_s_from: Callable[[float, int], float]) -> str:
    """Return the learning curve with one row per episode, by number of stages and then in order.

    Columns are `num_stages`, `episode` (of that number of stages, from 1), the episode's return and `best_value_s`,
    the best plan's value so far in seconds, as `splitload train` shows it. The return is the sum of the rewards of the
    steps played, under the objective's `return_name`. It is no measure of progress by itself: an episode that cannot
    better the record is left, and an objective's target may move with each record. What is learned shows in
    `best_value_s`.

    Args:
        result: What the agent found.
        objective: Name of what was searched for.
        value_s_from: `Search.value_s_from`.
    """
    header = f"num_stages,episode,{objective_named(objective).return_name},best_value_s"
    return "\n".join([header, *_rows(result, value_s_from)]) + "\n"


def _rows(result: SearchResult, value_s_from: Callable[[float, int], float]) -> Iterator[str]:
    for count, returns in result.returns.items():
        better = {episode: value_s_from(best, count) for episode, best in result.curves[count]}
        best: float | str = ""  # before the first plan
        for episode, total in enumerate(returns, 1):
            best = better.get(episode, best)
            yield f"{count},{episode},{total},{best}"
