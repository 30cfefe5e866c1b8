"""The study of memory asks fresh processes, and its table is of their medians."""

import json
from pathlib import Path

import pytest

from splitload.base.errors import CacheWarning
from splitload.frontends.onnx import Source, load_graph
from splitload.studies import memory, memory_models, records
from splitload.studies.memory_child import TakeMemory

linux = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="other systems do not tell")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The chain of convolutions, small."""
    for name, value in (("LAYERS", 6), ("SIDE", 16)):
        monkeypatch.setattr(memory_models, name, value)
    return memory_models.pictures(tmp_path / "cache")


def test_a_damaged_model_is_made_anew(pictures, tmp_path):
    whole = pictures.read_bytes()
    assert memory_models.pictures(tmp_path / "cache") == pictures
    pictures.write_bytes(whole[:-1] + b"x")
    with pytest.warns(CacheWarning, match=r"'pictures\.onnx' was changed"):
        assert memory_models.pictures(tmp_path / "cache") == pictures
    assert pictures.read_bytes() == whole


def test_even_cuts_share_the_work_and_leave_no_stage_empty(pictures, tmp_path):
    graph = load_graph(Source.open(pictures, "m"), "portable", tmp_path / "cache")
    blocks = len(graph.blocks)
    for wanted in (1, 2, 3, blocks, blocks + 5):
        cut = memory.even_work_cut(graph, wanted)
        assert cut.num_stages == min(wanted, blocks)
        work = [sum(graph.blocks[number].flops for number in range(*stage)) for stage in cut.stages()]
        assert max(work) <= sum(work) / cut.num_stages + max(block.flops for block in graph.blocks)


@linux
def test_a_record_has_every_figure_of_every_process(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(memory, "STAGES", (1, 2))
    assert memory.main([str(pictures), "--runs", "1", "-o", str(tmp_path / "memory.json")]) == 0
    record = json.loads((tmp_path / "memory.json").read_text())
    (row,) = record["rows"]
    assert (record["kind"], row["model_bytes"], row["source"]) == ("memory", pictures.stat().st_size, "measured")
    assert [stage["num_stages"] for stage in row["stages"]] == [1, 2]
    for figures in (row, *row["stages"]):
        for key, value in figures.items():
            if isinstance(value, list) and key != "stages":
                assert len(value) == 1, key
                assert 1 << 20 < value[0] < 4 << 30, key
    assert all(stage["pss_bytes"] <= stage["rss_bytes"] <= stage["peak_bytes"] for stage in row["stages"])
    assert not list((tmp_path / "cache").glob(".memory-*"))


def test_what_a_process_cannot_do_is_said_in_one_line(tmp_path):
    (tmp_path / "none.onnx").write_bytes(b"")
    with pytest.raises(memory.StageError, match=r"'stock' of 'none\.onnx' failed: "):
        memory.ask(TakeMemory("stock", str(tmp_path / "none.onnx")), tmp_path)


def test_the_table_is_of_medians():
    mib = 1 << 20
    stages = [
        {"num_stages": count, "bundle_bytes": 2_200_000, "rss_bytes": [rss * mib] * 3, "pss_bytes": [50 * mib] * 3}
        | {"peak_bytes": [200 * mib] * 3}
        for count, rss in ((1, 100), (8, 110))
    ]
    row = {"model": "a.b:m", "model_bytes": 2_000_000, "stages": stages, "stock_rss_bytes": [200 * mib] * 3}
    row |= {"build_peak_bytes": [1 * mib, 150 * mib, 900 * mib], "stock_peak_bytes": [100 * mib] * 3}
    record = {"rows": [row], "provenance": {"command": "measure it"}}
    table = records.fill("<!-- results:memory -->\n<!-- end -->", {"memory": [("m.json", record)]})
    assert "| m (2.0 MB) | 1.50 | 1 | 1.10 | 100 | 1.00 | 0.50 | 50 | 3 |" in table
    assert "| m (2.0 MB) | 1.50 | 8 | 1.10 | 110 | 1.10 | 0.55 | 50 | 3 |" in table
