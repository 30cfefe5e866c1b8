"""Weights in the order of a blocked layout are brought back by steps that onnxruntime has quick kernels for."""

from __future__ import annotations

import numpy as np
import pytest

from splitload.graphs.turns import applied, back, orders

SHAPES = [(32, 16, 3, 3), (16, 48, 1, 7), (16, 3, 7, 7), (32, 1, 3, 3), (16, 32, 1, 1), (48, 5, 1, 1)]


def in_blocks(weights: np.ndarray, block: int, *, inputs_too: bool) -> np.ndarray:
    """Return filters as MLAS has them: OIHWo, or OIHWio with input channels in blocks as well."""
    outputs, inputs, height, width = weights.shape
    if not inputs_too:
        return weights.reshape(outputs // block, block, inputs, height, width).transpose(0, 2, 3, 4, 1)
    split = weights.reshape(outputs // block, block, inputs // block, block, height, width)
    return split.transpose(0, 2, 4, 5, 3, 1)


@pytest.mark.parametrize("block", [8, 16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_filters_in_blocks_are_restored(shape: tuple[int, ...], block: int) -> None:
    weights = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    for inputs_too in (False, True)[: 1 + (shape[1] % block == 0)]:
        stored = in_blocks(weights, block, inputs_too=inputs_too).reshape(shape)
        found = [
            turns
            for turns, shapes in orders(shape, block)
            if shape in shapes and np.array_equal(applied(stored, turns).reshape(shape), weights)
        ]
        assert len(found) == 1
        assert np.array_equal(applied(weights, back(found[0])).reshape(shape), stored)


def test_a_matrix_stored_as_a_filter_is_restored_either_way_round() -> None:
    matrix = np.arange(32 * 48, dtype=np.float32).reshape(32, 48)
    stored = in_blocks(matrix.reshape(32, 48, 1, 1), 16, inputs_too=True).reshape(32, 48, 1, 1)
    restored = {shape: applied(stored, turns) for turns, shapes in orders(stored.shape, 16) for shape in shapes}
    assert np.array_equal(restored[32, 48].reshape(32, 48), matrix)
    assert np.array_equal(restored[48, 32].reshape(48, 32), matrix.T)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_step_moves_one_axis_and_none_of_one_element(shape: tuple[int, ...]) -> None:
    """Otherwise onnxruntime moves elements one by one, which takes ten times as long."""
    for turns, _ in orders(shape, 16):
        for sizes, axes in turns:
            kept = [axis for axis, size in zip(range(len(sizes)), sizes, strict=True) if size > 1]
            order = [axis for axis in axes if axis in kept]
            assert any([each for each in order if each != axis] == [e for e in kept if e != axis] for axis in kept)
        small = [sizes for sizes, axes in turns if axes == (0, 2, 1) and min(sizes[1:]) < 16]
        assert not small or shape[1] < 16, "thousands of small matrices, for each of which the kernel calls its threads"


def test_what_fills_no_block_is_no_filter_in_blocks() -> None:
    assert [*orders((20, 16, 3, 3), 16)] == [*orders((16, 16), 16)] == [*orders((16, 16, 3, 3), None)] == []
