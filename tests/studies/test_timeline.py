"""The picture in README.md is that of its record, and shows the run of the median."""

import xml.etree.ElementTree as ET

import pytest

from splitload.studies import timeline


def schedule(load_s, infer_s, stages=1):
    """Return stages that load at once, each on a thread of its own, and infer one after the other."""
    tasks = []
    for stage in range(stages):
        start = load_s + stage * infer_s
        tasks.append({"stage": stage, "kind": "load", "thread": stage, "start_s": 0.0, "end_s": load_s})
        tasks.append({"stage": stage, "kind": "infer", "thread": 0, "start_s": start, "end_s": start + infer_s})
    return {"source": "measured", "tasks": tasks}


def record(*arms):
    rows = [
        {
            "model": "zoo:a<b", "model_bytes": 5_000_000, "arm": arm, "num_stages": stages,
            "ttfo_s": {"median": 0.1}, "schedules": schedules,
        }
        for arm, stages, schedules in arms
    ]  # fmt: skip
    return {"rows": rows, "provenance": {"machine": {"threads": 2}}}


def test_the_picture_is_that_of_the_record():
    assert timeline.main(["--check"]) == 0, "run: python -m splitload.studies.timeline"


def test_a_changed_picture_is_noticed(tmp_path):
    file = tmp_path / "picture.svg"
    assert timeline.main(["--check", "-o", str(file)]) == 1
    assert timeline.main(["-o", str(file)]) == 0
    assert timeline.main(["--check", "-o", str(file)]) == 0
    file.write_text(file.read_text().replace("stock", "other"))
    assert timeline.main(["--check", "-o", str(file)]) == 1


def test_the_median_run_is_drawn_and_the_arm_of_most_stages_enlarged():
    stock = [schedule(0.3, 0.1), schedule(0.1, 0.1), schedule(0.9, 0.1)]
    drawn = timeline.picture(record(("stock", 1, stock), ("splitload", 2, [schedule(0.05, 0.02, 2)])))
    image = ET.fromstring(drawn)  # noqa: S314 - our own
    texts = [each.text for each in image.iter("{http://www.w3.org/2000/svg}text")]
    assert "400 ms" in texts, "the run of 0.3 + 0.1 seconds is the median"
    assert "90 ms" in texts
    assert {"load, thread 1", "load, thread 2", "inference"} <= set(texts)
    assert "a<b (5 MB): time to first output" in texts


@pytest.mark.parametrize("mode", ["prefers-color-scheme: dark", 'class="paper"'])
def test_the_picture_brings_its_own_background_for_light_and_dark_mode(mode):
    assert mode in timeline.PICTURE.read_text(encoding="utf-8")
