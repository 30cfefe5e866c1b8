"""Graphs that take as long are told by operators and sizes."""

from __future__ import annotations

import models
import numpy as np
import onnx

from splitload.graphs.work_key import work_key


def graph(text: str, **weights: np.ndarray) -> onnx.GraphProto:
    return models.text(text, **weights).graph


def test_names_and_weights_are_no_part_and_operators_sizes_and_whole_numbers_are() -> None:
    text = "g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {{ {a} = Conv<pads=[{pads}]>(x, w) y = Relu({a}) }}"
    one = work_key(graph(text.format(a="a", pads="1,1,1,1"), w=models.floats(4, 4, 3, 3)))
    assert work_key(graph(text.format(a="b", pads="1,1,1,1"), w=2 * models.floats(4, 4, 3, 3))) == one
    others = [
        graph(text.format(a="a", pads="1,1,1,2"), w=models.floats(4, 4, 3, 3)),
        graph(text.format(a="a", pads="1,1,1,1"), w=models.floats(4, 2, 3, 3)),
        graph(text.format(a="a", pads="1,1,1,1").replace("Relu", "Tanh"), w=models.floats(4, 4, 3, 3)),
        graph(text.format(a="a", pads="1,1,1,1").replace("4, 8, 8] x", "4, 9, 8] x"), w=models.floats(4, 4, 3, 3)),
        graph(text.format(a="a", pads="1,1,1,1").replace("(x, w)", "(x, x)"), w=models.floats(4, 4, 3, 3)),
    ]
    assert len({one, *map(work_key, others)}) == 6
    text = "g (float[9] x) => (float[n] y) { y = Slice(x, f, t) }"
    parts = [work_key(graph(text, f=np.array([f]), t=np.array([9]))) for f in (0, 3)]
    assert parts[0] != parts[1]
