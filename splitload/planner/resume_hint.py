"""What an interrupted search says: the command that builds the best plan so far."""

from __future__ import annotations

import shlex

from splitload.base.phrases import count_of
from splitload.plan.partition import Partition
from splitload.planner.request import DEFAULTS, TrainRequest


def resume_hint(request: TrainRequest, best: Partition | None, *, resumes: bool = False) -> str:
    """Return what to do with the best plan so far after an interrupt; and that the search resumes, if it does."""
    if best is None:
        return "interrupted before a first plan was found; nothing was written"
    points = ",".join(map(str, best.split_points))
    words = ["splitload", "train", request.model, "--device", request.device, f"--split-points={points}"]
    words.append(f"--objective={request.objective}")
    if request.max_blocks != DEFAULTS["max_blocks"]:
        words.append(f"--max-blocks={request.max_blocks}")
    if request.trained:
        words.append(f"--trainable={request.trained}")
    if request.new_head is not None:
        words.append(f"--new-head={request.new_head}")
    if request.residency is not None:
        words.append(f"--residency={request.residency}")
    if request.crowd is not None:
        words.append(f"--crowd={request.crowd}")
    words += [f"--input={pair}" for pair in request.feed_words]
    if request.output:
        words += ["-o", request.output]
    plan = f"The best plan so far has {count_of(best.num_stages, 'stage')}"
    what = "the same command goes on with the search" if resumes else "nothing was written"
    return f"interrupted; {what}. {plan}; to build it: {shlex.join(words)}"
