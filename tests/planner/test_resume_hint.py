"""An interrupted search says the command that builds its best plan."""

from __future__ import annotations

import shlex
from pathlib import Path

from splitload.commands.parser import parser
from splitload.plan.partition import Partition
from splitload.planner.request import SETTINGS, TrainRequest
from splitload.planner.resume_hint import resume_hint


def test_without_a_plan_nothing_can_be_built() -> None:
    request = TrainRequest(device="s20", cache=Path("cache"))
    assert resume_hint(request, None) == "interrupted before a first plan was found; nothing was written"


def test_the_command_asks_for_the_same() -> None:
    request = TrainRequest(
        model="a model.onnx",
        device="host",
        objective="ttfo",
        max_blocks=9,
        new_head=5,
        residency="40MB",
        output="out/b.splitload",
        feed_words=("x=x.npy",),
        cache=Path("cache"),
    )
    hint = resume_hint(request, Partition(9, (2, 5)), resumes=True)
    said, _, command = hint.partition("to build it: ")
    assert said == "interrupted; the same command goes on with the search. The best plan so far has 3 stages; "
    assert command == (
        "splitload train 'a model.onnx' --device host --split-points=2,5 --objective=ttfo --max-blocks=9 "
        "--trainable=1 --new-head=5 --residency=40000000 --input=x=x.npy -o out/b.splitload"
    )
    options = parser().parse_args(shlex.split(command)[1:])
    assert options.input == ["x=x.npy"]
    again = TrainRequest(
        cache=request.cache, feed_words=request.feed_words, **{name: getattr(options, name) for name in SETTINGS}
    )
    assert (again.target, again.trained, again.new_head, again.max_blocks) == (request.target, "1", 5, 9)
    assert again.residency == request.residency == 40_000_000
