"""The tables in README.md, docs/ and results/README.md are those of the records."""

import pytest

from splitload.base.errors import UsageError
from splitload.studies import records


def test_tables_match_the_records():
    assert records.main(["--check"]) == 0, "run: python -m splitload.studies.records"


def test_documents_with_tables_are_those_that_are_filled():
    marked = [
        path
        for pattern in ("*.md", "docs/**/*.md", "results/*.md", "splitload/**/*.md")
        for path in records.ROOT.glob(pattern)
        if "<!-- results:" in path.read_text(encoding="utf-8")
    ]
    assert sorted(marked) == sorted(records.DOCUMENTS)


def search_row(model, device, learned_s, proved=True):
    stage = {"num_stages": 2, "known_s": 1.0, "bound_s": 1.0 if proved else 0.8, "proved": proved}
    stage |= {name: {"sarsa": value} for name, value in (("learned_s", learned_s), ("stopped", ["proved", "patience"]))}
    row = {"model": model, "device": device, "source": "simulated", "objective": "ttfo", "stages": [stage]}
    return row | {"search_s": {"sarsa": [0.5, 1.5]}}


def test_learned_plans_are_shown_by_device_and_in_all():
    rows = [search_row("m", "a", [1.0, 1.2]), search_row("n", "a", [1.0, 1.0]), search_row("m", "b", [1.0, 1.0], False)]
    record = {"rows": rows, "provenance": {"command": "make it"}}
    table = records.fill("<!-- results:search -->\n<!-- end -->", {"search": [("a.json", record)]})
    assert "| sarsa | a (simulated) | ttfo | 2 | 4 | 1.1400 | 1.2000 | m | 2 | 2 of 2 | – | 1.5 |" in table
    assert "| sarsa | b (simulated) | ttfo | 1 | 2 | 1.0000 | 1.0000 | – | 1 | 0 of 1 | 25.00% | 1.5 |" in table
    assert "| sarsa | all | all | 2 | 6 | 1.1000 | 1.2000 | m | 3 | 2 of 3 | 25.00% | 1.5 |" in table


def test_the_ablation_is_shown_by_objective():
    figures = {"num_plans": 9, "mean_ratio": 1.002, "worst_ratio": 1.5, "num_missed": 2, "num_proved": 7}
    figures |= {"median_best_at": 12.5, "median_episodes": 100, "mean_search_s": 0.125}
    rows = [
        {"objective": objective, "factor": "α (1)", "value": "0.5", "figures": figures}
        for objective in ("ttfo", "balance")
    ]
    record = {"rows": rows, "provenance": {"command": "make it"}}
    table = records.fill("<!-- results:ablation -->\n<!-- end -->", {"ablation": [("a.json", record)]})
    assert "| balance | α (1) | 0.5 | 9 | 1.0020 | 1.5000 | 2 | 7 | 12 | 100 | 0.12 |" in table
    assert table.index("| balance |") < table.index("| ttfo |")


def test_a_changed_record_is_noticed():
    text = "<!-- results:search -->\nold\n<!-- end -->\n"
    record = {"rows": [search_row("m", "a", [1.0, 1.0])], "provenance": {"command": "make it"}}
    filled = records.fill(text, {"search": [("a.json", record)]})
    assert "old" not in filled
    assert "`make it`" in filled
    assert records.fill(filled, {"search": [("a.json", record)]}) == filled
    record["rows"][0]["stages"][0]["learned_s"]["sarsa"] = [1.0, 1.5]
    assert records.fill(filled, {"search": [("a.json", record)]}) != filled


def test_a_record_has_a_row_on_each_line(tmp_path):
    file = tmp_path / "kind.json"
    rows = [{"a": [1, 2]}, {"b": 2}]
    records.write_record(file, "kind", "module", ["x", "-o", str(file)], rows, schema_version=3)
    (read,) = records.read_records(tmp_path)["kind"]
    assert read[0] == "kind.json"
    assert (read[1]["schema_version"], read[1]["rows"]) == (3, rows)
    assert read[1]["provenance"]["command"] == "python -m module x"
    assert '{"a": [1, 2]},\n{"b": 2}\n' in file.read_text()


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_record_that_is_none_is_named(tmp_path, text):
    (tmp_path / "kind.json").write_text(text)
    with pytest.raises(UsageError, match=r"^'.*kind\.json' is damaged, or no record: "):
        records.read_records(tmp_path)


def test_steps_are_shown_in_thousands():
    row = {"through": "SplitEnv", "num_envs": 1, "objective": "ttfo", "play": "random"}
    row["steps_per_s"] = {"median": 201_600.0, "min": 99_900.0, "max": 250_000.0, "samples": [1.0] * 3}
    record = {"rows": [row], "provenance": {"command": "make it"}}
    table = records.fill("<!-- results:steps -->\n<!-- end -->", {"steps": [("s.json", record)]})
    assert "| SplitEnv | 1 | ttfo | random | 202 (100–250) | 3 |" in table


def figures(**seconds):
    """Return the figures of an arm; a time is its median, half of it the minimum, and so on."""
    values = {f"{name}_s": value for name, value in seconds.items()} | {"peak_memory_bytes": 2 << 20}
    return {name: {"median": value, "min": value / 2, "max": value * 2} for name, value in values.items()}


def bench_record(model, mega_bytes, arms, **more):
    record = {"model": model, "model_bytes": mega_bytes * 1_000_000, "runs": 9, "page_cache": "warm", "arms": arms}
    plan = {"num_stages": 2, "split_points": [1]} if "splitload" in arms else None
    return record | {"plan": plan, "provenance": {"command": f"bench {model}"}} | more


def test_bench_tables_take_old_and_new_records():
    times = {"load": 0.1, "first_inference": 0.1, "steady_inference": 0.2}
    old = bench_record(
        "zoo:resnet152", 10, {"stock": figures(ttfo=0.4, **times), "splitload": figures(ttfo=0.2, **times)}
    )
    arms = {
        "stock": figures(ttfo=0.8, process=1.0, **times),
        "torch": figures(ttfo=2, process=4.0, **times),
        "splitload": figures(ttfo=0.1, process=0.5, **times)
        | {"settled_memory_bytes": {"median": 1 << 20, "min": 0, "max": 0}},
    }
    new = bench_record("zoo:vgg19", 100, arms, schema_version=2)
    deep = bench_record("deep:9", 1, {"tuned": figures(ttfo=0.1, **times)})
    own = bench_record("zoo:lowlight", 31, {"tuned": figures(ttfo=0.1, **times)})  # as deep, no target's model
    every = {"bench": [("a.json", old), ("b.json", new), ("d.json", deep), ("l.json", own)]}

    bench = records.fill("<!-- results:bench -->\n<!-- end -->", every)
    assert "| resnet152 (10 MB) | splitload, k = 2 | 200 (100–400) | 0.50 | 100 | 100 | 200 | – | 2 | – | 9 |" in bench
    assert "| vgg19 (100 MB) | splitload, k = 2 | 100 (50–200) | 0.12 | 100 | 100 | 200 | 500 | 2 | 1 | 9 |" in bench
    assert "| deep:9 (1 MB) | tuned | 100 (50–200) | – |" in bench

    ttfo = records.fill("<!-- results:ttfo -->\n<!-- end -->", every)
    assert "| model | stock | tuned | torch | splitload | k | n |" in ttfo
    assert "| resnet152 (10 MB) | 400 (200–800) | – | – | 200 (100–400) | 2 | 9 |" in ttfo

    targets = records.fill("<!-- results:targets -->\n<!-- end -->", every)
    assert "| TTFO, stock ÷ splitload | 4.00 | 2.00 | resnet152 (10 MB) | 2 |" in targets
    assert "| whole process, torch ÷ splitload | 8.00 | 8.00 | vgg19 (100 MB) | 1 |" in targets
    assert "| TTFO ÷ steady inference of splitload, 79 MB and more | 0.50 | 0.50 | vgg19 (100 MB) | 1 |" in targets
    assert "tuned" not in targets
    assert "a.json" not in targets


def test_cold_records_have_a_table_of_their_own():
    arms = {"stock": figures(ttfo=0.4, limit=0.3, process=1) | {"touched_bytes": {"median": 5e6, "min": 0, "max": 0}}}
    cold = bench_record("zoo:a", 10, arms, page_cache="cold", storage_bytes_per_s=50e6)
    every = {"bench": [("c.json", cold)]}
    assert "| a (10 MB) | 50 | stock | 400 (200–800) | 300 | 1.33 | 5 | 1000 | 9 |" in records.fill(
        "<!-- results:cold -->\n<!-- end -->", every
    )
    assert "No record yet" in records.fill("<!-- results:bench -->\n<!-- end -->", every)
    assert "No record yet" in records.fill("<!-- results:cold -->\n<!-- end -->", {})


def test_the_calibration_is_shown_beside_simpler_fits():
    def row(fit, free, residual):
        model = {"model": "zoo:a", "weights_bytes": 5_000_000, "num_nodes": 7, "observed_s": {"original": 0.2}}
        model |= {"simulated_s": {"original": 0.2 * (1 + residual)}, "residual": {"original": residual}}
        parameters = {"node_s": 0.00306, "serial_share": 0.2}
        return {"fit": fit, "free": free, "parameters": parameters, "rms_residual": abs(residual), "models": [model]}

    rows = [row("both", ["node_s", "serial_share"], 0.05), row("one", ["node_s"], -0.25)]
    record = {"rows": rows, "provenance": {"command": "fit it"}}
    filled = records.fill("<!-- results:calibration -->\n<!-- end -->", {"calibration": [("c.json", record)]})
    assert "| both | `node_s` = 0.00306, `serial_share` = 0.2 | 5.0 |" in filled
    assert "| one | `node_s` = 0.00306 | 25.0 |" in filled
    assert "| a | 5.0 | 7 | original | 200 | 210 | +5.0 | -25.0 |" in filled
    assert "`fit it`" in filled
