"""The tables in README.md and results/README.md are those of the records."""

from splitload.commands import records


def test_tables_match_the_records():
    assert records.main(["--check"]) == 0, "run: python -m splitload.commands.records"


def test_a_changed_record_is_noticed(tmp_path):
    text = "<!-- results:search -->\nold\n<!-- end -->\n"
    row = {"model": "m", "device": "s20", "source": "simulated", "num_blocks": 3, "plans": [1], "worst_ratio": 1.0}
    record = {"rows": [row | {"slowest_search_s": 0.5}], "provenance": {"command": "make it"}}
    filled = records.fill(text, {"search": [("a.json", record)]})
    assert "old" not in filled
    assert "| m | s20 (simulated) | 3 | 1 | 1.0000 | 0.5 |" in filled
    assert "`make it`" in filled
    assert records.fill(filled, {"search": [("a.json", record)]}) == filled
    record["rows"][0]["worst_ratio"] = 1.5
    assert records.fill(filled, {"search": [("a.json", record)]}) != filled
