"""The study of first outputs takes its arms in turns, and keeps the schedule of every sample."""

import json

import pytest

from splitload.base.errors import StageError
from splitload.studies import first_output


class Asked:
    """Answers as the commands of splitload do; the k-th answer of `run` is of k ms."""

    def __init__(self):
        self.words = []
        self.runs = 0

    def __call__(self, words):
        self.words.append(list(words))
        if words[0] == "bench":
            return {"model_bytes": 5, "samples": {"stock": [{"load_s": 0.3, "ttfo_s": 0.5}]}}
        if words[0] == "run":
            self.runs += 1
            stages = 2 if words[1].endswith("1.splitload") else 1
            tasks = [
                {"stage": stage, "kind": "infer", "thread": 0, "start_s": 0.0, "end_s": self.runs / 1e3}
                for stage in range(stages)
            ]
            return {"timeline": {"source": "measured", "tasks": tasks}}
        return {}


def test_arms_take_turns_and_every_sample_is_kept(tmp_path):
    ask = Asked()
    rows = first_output.measure("zoo:a", ("", "3"), 3, tmp_path, ask)
    assert [words[4:6] for words in ask.words[:2]] == [["--split-points", ""], ["--split-points", "3"]]
    arms = ["bench" if words[0] == "bench" else words[1][-11] for words in ask.words[2:]]
    assert arms == ["bench", "0", "1", "0", "1", "bench", "1", "bench", "0"]
    assert [(row["arm"], row["num_stages"]) for row in rows] == [("stock", 1), ("splitload", 1), ("splitload", 2)]
    assert [row["ttfo_s"]["samples"] for row in rows] == [[0.5] * 3, [0.001, 0.003, 0.006], [0.002, 0.004, 0.005]]
    assert rows[2]["ttfo_s"]["median"] == 0.004
    assert rows[0]["schedules"][0]["tasks"][0] == {
        "stage": 0, "kind": "load", "thread": 0, "start_s": 0.0, "end_s": 0.3,
    }  # fmt: skip


def test_a_command_that_fails_is_one_line():
    with pytest.raises(StageError, match=r"'splitload run' failed: .*is not a bundle"):
        first_output.ask(["run", "nowhere.splitload"])


def test_a_command_answers_in_a_fresh_process():
    assert "s20" in json.dumps(first_output.ask(["devices"]))
