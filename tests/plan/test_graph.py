"""Cut points, blocks and the choice between cuts, on graphs made by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitload.plan.graph import CutPoint, ModelGraph, Node, Tensor, choose_cuts, used_names


def graph(
    nodes: list[tuple[str, str, str]],
    *,
    sizes: dict[str, int | None] | None = None,
    types: dict[str, str] | None = None,
    weights: dict[str, int] | None = None,
    max_blocks: int = 64,
    max_weight_bytes: int | None = None,
) -> ModelGraph:
    """A graph of nodes given as (inputs, weights, outputs), names apart by blanks; `x` is the input."""
    sizes, types = sizes or {}, types or {}
    made = tuple(
        Node(f"n{index}", "Op", tuple(reads.split()), tuple(writes.split()), tuple(uses.split()), 10)
        for index, (reads, uses, writes) in enumerate(nodes)
    )
    names = used_names(["x", *(name for node in made for name in (*node.inputs, *node.outputs))])
    tensors = {name: Tensor(name, types.get(name, "tensor(float)"), None, sizes.get(name, 4)) for name in names}
    return ModelGraph(
        "g", "0" * 64, 1, "portable", Path("g"), made, tensors, ("x",), made[-1].outputs, weights or {}, max_blocks,
        max_weight_bytes=max_weight_bytes,
    )  # fmt: skip


def test_the_whole_topological_order_has_cut_points_with_boundary_and_size() -> None:
    skip = graph([("x", "", "a"), ("a", "", "b"), ("b x", "", "c"), ("c a", "", "y")], sizes={"a": 8, "b": None})
    assert skip.cut_points == (
        CutPoint(1, ("a",), 8),
        CutPoint(2, ("a", "b"), 8),  # b has no known size; the input x does not count
        CutPoint(3, ("a", "c"), 12),
    )
    assert skip.boundary(2) == ("a", "b")
    assert skip.boundary(0) == skip.boundary(4) == ()


def test_an_output_of_the_model_crosses_only_where_it_is_read_later() -> None:
    outputs = graph([("x", "", "a b"), ("a", "", "c"), ("c", "", "y")])
    assert [cut.boundary for cut in outputs.cut_points] == [("a",), ("c",)]


def test_no_cut_where_anything_but_a_plain_tensor_crosses() -> None:
    sequence = graph(
        [("x", "", "s"), ("s", "", "a"), ("s a", "", "b"), ("b", "", "y")], types={"s": "seq(tensor(float))"}
    )
    assert [cut.position for cut in sequence.cut_points] == [3]
    for kind in ("optional(tensor(float))", "map(int64,tensor(float))", "sparse_tensor(float)"):
        assert graph([("x", "", "a"), ("a", "", "y")], types={"a": kind}).cut_points == ()


def test_no_cut_parts_an_operator_from_what_quantises_around_it() -> None:
    made = graph(
        [("x", "", "q"), ("q", "", "d"), ("d", "", "m"), ("m", "", "p"), ("p", "", "e"), ("e", "", "y")],
        types={"q": "tensor(uint8)", "p": "tensor(int8)"},
    )
    kinds = ("QuantizeLinear", "DequantizeLinear", "MatMul", "QuantizeLinear", "DequantizeLinear", "MatMul")
    nodes = tuple(replace(node, op_type=kind) for node, kind in zip(made.nodes, kinds, strict=True))
    assert [cut.boundary for cut in replace(made, nodes=nodes).cut_points] == [("q",)]


def test_independent_parts_may_be_cut_apart_with_nothing_crossing() -> None:
    assert graph([("x", "", "a"), ("x", "", "y")]).cut_points == (CutPoint(1, (), 0),)


def test_a_single_node_is_one_block() -> None:
    single = graph([("x", "w", "y")], weights={"w": 12})
    (block,) = single.blocks
    assert (block.name, block.start, block.end, block.weights_bytes, block.flops) == ("n0", 0, 1, 12, 10)


def test_blocks_cover_all_nodes_and_count_a_shared_weight_once_each() -> None:
    shared = graph([("x", "w", "a"), ("a", "w v", "b"), ("b", "w", "y")], weights={"w": 8, "v": 2}, max_blocks=2)
    assert [(block.start, block.end) for block in shared.blocks] in ([(0, 1), (1, 3)], [(0, 2), (2, 3)])
    assert shared.segment_weights_bytes(0, 3) == 10
    assert sum(block.flops for block in shared.blocks) == 30
    assert {block.name for block in shared.blocks} & {"n1 … n2", "n0 … n1"}


def test_max_blocks_one_makes_one_block() -> None:
    nodes = [(f"t{index}" if index else "x", "", f"t{index + 1}") for index in range(9)]
    assert len(graph(nodes, max_blocks=1).blocks) == 1
    assert len(graph(nodes, max_blocks=9).blocks) == 9
    assert len(graph(nodes, max_blocks=4).blocks) <= 4


def test_heavy_weights_are_spread_over_the_blocks() -> None:
    nodes = [(f"t{index}" if index else "x", f"w{index}", f"t{index + 1}") for index in range(40)]
    weights = {f"w{index}": 1_000_000 if index >= 36 else 1 for index in range(40)}
    heavy = graph(nodes, weights=weights, max_blocks=8)
    assert max(block.weights_bytes for block in heavy.blocks) < 2_000_000


@pytest.mark.parametrize("max_blocks", [1, 3, 40])
def test_no_block_that_could_be_divided_holds_more_than_it_may(max_blocks: int) -> None:
    nodes = [(f"t{index}" if index else "x", f"w{index}", f"t{index + 1}") for index in range(40)]
    weights = {f"w{index}": 50 if index == 7 else index % 5 for index in range(40)}
    made = graph(nodes, weights=weights, max_blocks=max_blocks, max_weight_bytes=12)
    assert {block.end - block.start for block in made.blocks if block.weights_bytes > 12} == {1}
    assert len(made.blocks) <= max(max_blocks, 2 * sum(weights.values()) // 12 + 1)
    assert made.largest_weight() == ("w7", made.nodes[7], 50)
    if max_blocks == 40:
        assert made.blocks == replace(made, max_weight_bytes=None).blocks


def test_of_cuts_that_keep_a_block_small_enough_the_smallest_is_taken() -> None:
    nodes = [(f"t{index}" if index else "x", f"w{index}", f"t{index + 1}") for index in range(6)]
    made = graph(nodes, weights={f"w{index}": 4 for index in range(6)}, max_blocks=1, max_weight_bytes=16)
    assert [block.end for block in made.blocks] == [4, 6]
    sizes = {"t2": 8}
    small = {name: replace(each, nbytes=sizes.get(name, 99)) for name, each in made.tensors.items()}
    assert [block.end for block in replace(made, tensors=small).blocks] == [2, 6]


def test_a_long_chain_with_long_skips_keeps_every_cut() -> None:
    down = [(f"t{index}" if index else "x", "", f"t{index + 1}") for index in range(1000)]
    up = [(f"{f's{index}' if index else 't1000'} t{999 - index}", "", f"s{index + 1}") for index in range(999)]
    long = graph(down + up)
    assert len(long.cut_points) == 1998
    assert max(len(cut.boundary) for cut in long.cut_points) == 1000
    assert len(long.blocks) <= 64
    assert long.blocks[-1].end == 1999


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(1e-4, 1.0)), min_size=1, max_size=60),
    st.integers(1, 20),
)
def test_a_cut_is_dropped_only_for_a_near_one_that_is_no_larger(drawn: list[tuple[int, float]], most: int) -> None:
    cuts = [CutPoint(index + 1, (), size) for index, (size, _) in enumerate(drawn)]
    cost = [0.0, *accumulate(step for _, step in drawn), 0.0]
    cost[-1] = cost[-2] + 0.01
    chosen = choose_cuts(cuts, cost, most)
    assert len(chosen) < most or (len(chosen) == 0 and most == 1)
    assert chosen == [cut for cut in cuts if cut in chosen]
    if len(cuts) < most:
        assert chosen == cuts
    if not chosen:
        assert most == 1
        return
    smallest = min(cut.boundary_bytes for cut in cuts)
    assert min(cut.boundary_bytes for cut in chosen) == smallest
    dropped = [cut for cut in cuts if cut not in chosen]
    # some distance explains every dropped cut, and no two chosen ones are nearer than that
    nearest = [
        min(
            (
                abs(cost[cut.position] - cost[kept.position])
                for kept in chosen
                if kept.boundary_bytes <= cut.boundary_bytes
            ),
            default=None,
        )
        for cut in dropped
    ]
    assert all(distance is not None for distance in nearest)
    apart = min((cost[b.position] - cost[a.position] for a, b in pairwise(chosen)), default=None)
    if apart is not None and nearest:
        assert max(distance for distance in nearest if distance is not None) <= apart + 1e-9


def test_used_names_drops_empties_and_repeats() -> None:
    assert used_names(["a", "", "b", "a"]) == ("a", "b")
