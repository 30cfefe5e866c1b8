"""What a bundle gains is said in a sentence, with what of it comes from where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from splitload.commands.gain_sentence import buffers_sentence, gain_sentence
from splitload.planner.gain import GAIN_RUNS, Gain


def times(ttfo_s: float, process_s: float) -> dict[str, float]:
    return {"ttfo_s": ttfo_s, "process_s": process_s}


@pytest.mark.parametrize(
    ("gain", "sentence"),
    [
        (
            Gain("measured", 1, times(0.02, 0.2), times(0.08, 0.3), 3),
            "First output after 20.0 ms; a stock session takes 80.0 ms, 4.00 times as long. "
            "Whole process 200.0 ms; with a stock session it takes 300.0 ms, 1.50 times as long. "
            "Layout and mapping make all of the 4.00, as there is no cut. "
            "(Measured, medians of 3 fresh processes each, in turns.)",
        ),
        (
            Gain("measured", 2, times(0.02, 0.2), times(0.08, 0.1), 9, 1.25),
            "First output after 20.0 ms; a stock session takes 80.0 ms, 4.00 times as long. "
            "Whole process 200.0 ms; with a stock session it takes 100.0 ms, 0.50 times as long, a loss. "
            "Of the 4.00, layout and mapping make a factor of 3.20, the cut one of 1.25. "
            "(Measured, medians of 9 fresh processes each, in turns.)",
        ),
        (
            Gain("simulated", 4, {"ttfo_s": 0.1}, {"ttfo_s": 0.25}, cut_ratio=2.5),
            "First output after 100.0 ms in 4 stages; one takes 250.0 ms, 2.50 times as long (simulated).",
        ),
        (
            Gain("predicted", 1, {"ttfo_s": 0.1}, {"ttfo_s": 0.1}),
            "First output after 100.0 ms, in 1 stage (predicted).",
        ),
    ],
)
def test_sentences(gain: Gain, sentence: str) -> None:
    assert gain_sentence(gain) == sentence


def arms(**process_s: float) -> dict[str, dict[str, dict[str, float]]]:
    return {name.replace("_", "-"): {"process_s": {"median": value}} for name, value in process_s.items()}


def test_the_process_with_buffers_is_named_where_it_was_measured() -> None:
    assert buffers_sentence(arms(stock=0.3, splitload=0.2, splitload_buffers=0.05), 9) == (
        "With buffers in place of numpy arrays (splitload-buffers): whole process 50.0 ms; with a stock session it "
        "takes 300.0 ms, 6.00 times as long. (Measured, medians of 9 fresh processes each, in turns.)"
    )
    assert buffers_sentence(arms(stock=0.3, splitload=0.2), 9) is None
    assert buffers_sentence(arms(splitload_buffers=0.05), 9) is None


def test_one_sample_is_no_median() -> None:
    told = buffers_sentence(arms(stock=0.3, splitload_buffers=0.4), 1)
    assert told is not None
    assert told.endswith("0.75 times as long, a loss. (Measured, one fresh process each, in turns.)")


def test_what_is_not_known_is_said() -> None:
    gain = Gain("measured", 2, times(0.02, 0.2), times(0.08, 0.3), 3)
    assert "What of it comes from the cut was not measured." in gain_sentence(gain)
    assert gain.to_json()["layout_ratio"] is None


@pytest.mark.usefixtures("measured_once")
def test_train_and_bench_measure_beside_stock(run: Any, chain_model: Path) -> None:
    found = json.loads(run("train", chain_model, "--device", "host", "-o", "b.splitload", "--json"))
    gain = found["gain"]
    assert (gain["source"], gain["runs"]) == ("measured", GAIN_RUNS)
    assert gain["splitload"]["ttfo_s"] == found["ttfo_s"]["measured"]
    assert gain["ratio"] == gain["stock"]["ttfo_s"] / gain["splitload"]["ttfo_s"]
    assert gain["stock"]["process_s"] > gain["stock"]["ttfo_s"] > 0
    out = run(
        "bench", chain_model, "--bundle", "b.splitload", "--runs", "1", "--arms", "stock,splitload,splitload-buffers"
    )
    both = out.splitlines()[-2:]
    assert both[0].startswith("First output after ")
    assert both[1].startswith("With buffers in place of numpy arrays (splitload-buffers): whole process ")
    assert all(line.endswith("(Measured, one fresh process each, in turns.)") for line in both)


def test_a_simulated_device_shows_one_stage_beside_the_plan(run: Any) -> None:
    words = ["train", "--device", "s20", "--agent", "exact", "--max-stages", "3"]
    found = json.loads(run(*words, "-o", "b.splitload", "--json"))
    whole = json.loads(run(*words[:-1], "1", "-o", "one.splitload", "--json"))
    assert found["gain"]["source"] == "simulated"
    assert found["gain"]["stock"] is None
    assert found["gain"]["one_stage"]["ttfo_s"] == pytest.approx(whole["ttfo_s"]["predicted"])
    assert found["gain"]["splitload"]["ttfo_s"] == found["ttfo_s"]["predicted"]
