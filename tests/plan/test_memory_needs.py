"""What stages need of memory: counted by hand, against a slow count of lives, and never less than what all need."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from splitload.plan.graph import ModelGraph, Node, Tensor, used_names
from splitload.plan.memory import AROUND_BYTES, NODE_BYTES, PAGE_BYTES, SESSION_BYTES, memory_needs, peak_bytes
from splitload.plan.partition import Partition


def graph(
    nodes: list[tuple[str, str, str]], sizes: dict[str, int], weights: dict[str, int] | None = None
) -> ModelGraph:
    """A graph of nodes given as (inputs, weights, outputs), names apart by blanks; `x` and `z` may be inputs."""
    made = tuple(
        Node(f"n{index}", "Op", tuple(reads.split()), tuple(writes.split()), tuple(uses.split()), 10)
        for index, (reads, uses, writes) in enumerate(nodes)
    )
    outputs = {name for node in made for name in node.outputs}
    read = used_names(name for node in made for name in node.inputs)
    inputs = tuple(name for name in read if name not in outputs)
    tensors = {name: Tensor(name, "tensor(float)", None, sizes.get(name, 0)) for name in (*read, *outputs)}
    return ModelGraph("g", "0" * 64, 1, "portable", Path("g"), made, tensors, inputs, ("y",), weights or {})


CHAIN = [("x", "w", "a"), ("a", "v", "b"), ("a b", "w", "c"), ("c", "", "y")]
SIZES = {"x": 1, "a": 10, "b": 100, "c": 1000, "y": 10_000}


def test_a_chain_with_a_skip_by_hand() -> None:
    made = memory_needs(graph(CHAIN, SIZES, {"w": 7, "v": 5}))
    assert made.num_blocks == 4
    assert made.mapped_bytes[0] == (0, 7, 12, 12, 12)
    assert made.mapped_bytes[2][3] == 7, "a weight that an earlier stage reads too"
    assert made.working_bytes[0][1] == 1 + 10
    assert made.working_bytes[1][2] == 10 + 100
    assert made.working_bytes[1][4] == 10 + 1000 + 10_000, "a is held as it was given, b is gone when y is made"
    assert made.working_bytes[0][4] == 1 + 11_000
    assert made.passing_bytes[1][2] == 1, "the input is the caller's, to the end"
    assert made.passing_bytes[3][4] == 1
    assert made.working_bytes[3][4] == 11_000
    stage = made.stage(1, 3)
    assert stage == (12, 10 + 100 + 1000, 1, SESSION_BYTES + 2 * NODE_BYTES)
    assert stage.weights_bytes == 12 + 2 * PAGE_BYTES
    assert stage.live_bytes == 10 + 100 + 1000 + 1
    plan = Partition(4, (1, 3))
    stages = [made.stage(*each) for each in plan.stages()]
    assert made.live_bytes(plan) == 11_001
    assert made.most_live_bytes == 11_111, "where a and b are given, and held with all the rest"
    assert peak_bytes(stages, 500) == stage.weights_bytes + 500 + made.sessions_bytes(3)


def test_what_waits_counts_until_it_is_read_and_outputs_to_the_end() -> None:
    nodes = [("x", "", "y"), ("x", "", "a"), ("a", "", "b"), ("y b", "", "c")]
    made = memory_needs(graph(nodes, {"x": 1, "y": 10, "a": 100, "b": 1000, "c": 10_000}))
    assert made.passing_bytes[1][2] == 10
    assert made.passing_bytes[2][3] == 1 + 10
    assert (made.working_bytes[3][4], made.passing_bytes[3][4]) == (10 + 1000 + 10_000, 1)


@pytest.mark.parametrize("seed", range(5))
def test_random_graphs_against_a_count_of_each_moment(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    names, nodes = ["x"], []
    for number in range(9):
        reads = rng.sample(names, min(len(names), rng.randint(1, 3)))
        made = [f"t{number}{letter}" for letter in "ab"[: rng.randint(1, 2)]]
        nodes.append((" ".join(reads), "", " ".join(made)))
        names += made
    nodes.append((names[-1], "", "y"))
    sizes = {name: 1 << number for number, name in enumerate([*names, "y"])}
    model = graph(nodes, sizes)
    needs, bounds = memory_needs(model), [*(block.start for block in model.blocks), len(nodes)]
    for first, last in combinations(range(len(bounds)), 2):
        stage = range(bounds[first], bounds[last])
        most = 0
        for now in stage:
            there = {"x"}
            for position, (_, _, made) in enumerate(nodes[: now + 1]):
                for name in made.split():
                    uses = [place for place, (later, _, _) in enumerate(nodes) if name in later.split()]
                    given = position < stage.start and any(place >= stage.start for place in uses)
                    if given or name == "y" or max([*uses, position]) >= now:
                        there.add(name)
            most = max(most, sum(sizes[name] for name in there))
        assert needs.working_bytes[first][last] + needs.passing_bytes[first][last] == most


def test_rows_of_a_table_count_and_never_more_than_the_whole() -> None:
    base = graph([("i", "table", "a"), ("a", "table", "b"), ("b", "", "y")], {"i": 16, "a": 100}, {"table": 10**6})
    index = Tensor("i", "tensor(int64)", None, 16)
    looked = replace(base.nodes[0], op_type="Gather")
    model = replace(base, nodes=(looked, *base.nodes[1:]), tensors={**base.tensors, "i": index})
    made = memory_needs(model)
    assert made.mapped_bytes[0][1] == 100 + 2 * AROUND_BYTES
    assert made.mapped_bytes[0][2] == made.mapped_bytes[1][2] == 10**6, "the second node reads it whole"
    small = memory_needs(replace(model, weights_bytes={"table": 1000}))
    assert small.mapped_bytes[0][1] == 1000
    other = replace(model, tensors={**model.tensors, "i": replace(index, type="tensor(float)")})
    assert memory_needs(other).mapped_bytes[0][1] == 10**6, "no indices: the weight may be what is looked up by"
