"""What `splitload train` prints of a plan of one stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def test_one_stage_prints_no_table_of_equal_rows(run: Any) -> None:
    out = run("train", "--device", "s20", "--agent", "exact", "--max-stages", "1", "-o", "b.splitload")
    assert "uniform bytes" not in out
    assert "First output after " in out


def test_a_trainable_stage_is_no_second_one_that_does_not_pay(
    run: Any, chain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitload.planner.search.WORTHWHILE", 10.0)  # no cut pays
    out = run("train", chain_model, "--device", "s20", "--agent", "exact", "--trainable", "1", "-o", "b.splitload")
    assert "in 2 stages" in out
    assert "one frozen stage, as splitting would not pay: the best cut of what is frozen would have loaded after" in out
    assert "\none stage" not in out
    assert "uniform bytes" not in out


def test_a_cut_that_an_agent_did_not_find_is_not_called_one_that_does_not_pay(
    run: Any, chain_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitload.planner.search.WORTHWHILE", -10.0)  # every cut pays
    monkeypatch.setattr("splitload.planner.search.Search._pick", lambda _, partitions: min(partitions, key=len_of))
    out = run("train", chain_model, "--device", "s20", "--agent", "random", "--max-stages", "2", "-o", "b.splitload")
    assert "one stage, as random found no cut that pays, though the best two would have loaded after" in out
    assert "would not pay" not in out


def len_of(partition: Any) -> int:
    return int(partition.num_stages)
