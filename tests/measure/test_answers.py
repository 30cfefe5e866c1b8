"""Answers of other machines: each kind of job takes what it asked for, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from splitload.base.errors import DeviceError
from splitload.measure.answers import check_answer
from splitload.measure.job import ConvertModel, Job, LoadModel
from splitload.measure.piece_jobs import TimedPiece, TimeMessages, TimePieces
from splitload.measure.stage_jobs import ComparePacked, MeasureArena, SampleStages, StageFile, TryScheme

ONE, TWO = (StageFile((start, start + 1), f"{start}.ort", (), ()) for start in (0, 1))
COST = {"load_s": 0.1, "first_inference_s": 0.2, "inference_s": 0.3, "load_wait_s": 0.0, "first_wait_s": 0.0}
ROWS = [{"start": 0, "end": 1, **COST}, {"start": 1, "end": 2, **COST}]
SAMPLE = SampleStages((), (ONE, TWO))
PAIR = SampleStages((), (ONE, TWO), pair=(ONE, TWO))
GOOD: list[tuple[Job, dict[str, Any]]] = [
    (SAMPLE, {"rows": ROWS, "serial_share": None}),
    (PAIR, {"rows": ROWS, "serial_share": 1.5}),
    (TryScheme((), (ONE,), True, False, False), {"rows": [{"first_s": 0.1, "steady_s": 0.1}]}),
    (TryScheme((), (ONE,), True, False, False, steady=False), {"rows": [{"first_s": 0.1}]}),
    (ComparePacked((), (ONE, TWO)), {"differ": [True, False]}),
    (MeasureArena((), (ONE,), 0), {"anonymous_bytes": 1, "input_bytes": 0}),
    (LoadModel("stock", "m.onnx", (), whole=True), {"process_s": 1.0, "process_peak_memory_bytes": 5}),
    (TimePieces((TimedPiece("0.onnx", ()),), 2), {"rounds_s": [[0.1, 0.2]]}),
    (TimeMessages((8, 9), 1), {"rounds_s": [[0.1], [0.2]]}),
]


@pytest.mark.parametrize(("job", "answer"), GOOD)
def test_what_was_asked_for_is_taken_and_nothing_besides(job: Job, answer: dict[str, Any]) -> None:
    assert check_answer(job, {**answer, "conditions": {}, "code": "import os"}) == answer


@pytest.mark.parametrize(
    ("job", "answer"),
    [
        (SAMPLE, {"rows": ROWS[:1], "serial_share": None}),
        (SAMPLE, {"rows": [ROWS[0], ROWS[0]], "serial_share": None}),
        (SAMPLE, {"rows": [*ROWS, ROWS[0]], "serial_share": None}),
        (SAMPLE, {"rows": [ROWS[0], {**ROWS[1], "end": 3}], "serial_share": None}),
        (SAMPLE, {"rows": [ROWS[0], {**ROWS[1], "load_s": float("nan")}], "serial_share": None}),
        (SAMPLE, {"rows": [ROWS[0], {**ROWS[1], "inference_s": -1e-9}], "serial_share": None}),
        (SAMPLE, {"rows": "x"}),
        (SAMPLE, {"rows": [1, 2]}),
        (PAIR, {"rows": ROWS, "serial_share": None}),
        (PAIR, {"rows": ROWS, "serial_share": float("inf")}),
        (GOOD[2][0], {"rows": [{"first_s": 0.1}]}),
        (GOOD[2][0], {"rows": []}),
        (GOOD[4][0], {"differ": [True]}),
        (GOOD[4][0], {"differ": [1, 0]}),
        (GOOD[5][0], {"anonymous_bytes": 1.5, "input_bytes": 0}),
        (GOOD[5][0], {"anonymous_bytes": 1 << 51, "input_bytes": 0}),
        (GOOD[6][0], {"process_s": "1"}),
        (GOOD[7][0], {"rounds_s": [[0.1]]}),
        (GOOD[7][0], {"rounds_s": [[0.1, -0.2]]}),
        (GOOD[7][0], {"rounds_s": [0.1, 0.2]}),
        (GOOD[8][0], {"rounds_s": [[0.1]]}),
        (ConvertModel("ncnn", "m", "g", "t", ()), {}),
    ],
)
def test_what_cannot_be_is_one_line(job: Job, answer: dict[str, Any]) -> None:
    with pytest.raises(DeviceError, match=r"the device answers what cannot be .*; nothing of it is kept") as caught:
        check_answer(job, answer)
    assert "\n" not in str(caught.value)


def test_words_are_short_and_can_be_printed() -> None:
    job, answer = GOOD[6]
    found = check_answer(job, {**answer, "variant": "n" * 5000, "engine": "\x1b[31m", "runtime": 5})
    assert len(found.pop("variant")) == 500
    assert found == answer
