"""The study of time and memory of personalization: every arm trains the same in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitload.base.errors import StageError
from splitload.commands.console import Console
from splitload.studies import personal_tables, personalization, records

MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(6, 5), torch.nn.Linear(5, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))

def build():
    torch.manual_seed(3)
    return Net(), (torch.ones(1, 6),)
"""


def test_arms_train_the_same_in_fresh_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    (tmp_path / "tiny_net.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(personalization, "ARMS", ("splitload", "torch"))
    monkeypatch.setattr(personalization, "BATCH_SIZE", 4)
    monkeypatch.setattr(personalization, "UNMEASURED_RUNS", 0)
    case = personalization.Case("tiny_net:build", "last")
    row = personalization.row(case, 1, Console(json=True), tmp_path / "cache")
    assert list(row["samples"]) == ["splitload", "torch"]
    for (sample,) in row["samples"].values():
        assert len(sample["losses"]) == personalization.BATCHES
        np.testing.assert_allclose(sample["losses"], row["samples"]["torch"][0]["losses"], rtol=1e-4)
        assert sample["process_s"] > sample["first_step_s"] > 0
        assert sample["epoch_peak_bytes"] >= sample["first_step_peak_bytes"] > 1 << 20
    assert not list((tmp_path / "cache").glob(".personalization-*"))


def sample(process_s: float, peak_mib: int) -> dict[str, Any]:
    peaks = dict.fromkeys(("first_step_peak_bytes", "epoch_peak_bytes"), peak_mib << 20)
    return {"process_s": process_s, "first_step_s": process_s / 2, **peaks, "losses": [1.0, 0.9]}


def test_the_table_says_what_splitload_takes_of_each_arm() -> None:
    samples = {"splitload": [sample(2, 300), sample(1, 300), sample(3, 300)], "torch": [sample(8, 600)]}
    row = {"model": "m", "trainable": "fc", "samples": samples, "medians": personalization.medians(samples)}
    record = {"rows": [row], "provenance": {"command": "train it"}}
    text = records.fill("<!-- results:personalization -->\n<!-- end -->", {"personalization": [("p.json", record)]})
    assert "| m, `fc` | splitload | 2.00 (1.00–3.00) | – | 1.00 (0.50–1.50) | – | 300 (300–300) | – |" in text
    assert "| torch | 8.00 (8.00–8.00) | 0.25 | 4.00 (4.00–4.00) | 0.25 | 600 (600–600) | 0.50 |" in text
    head, body = personal_tables.personalization([("p.json", record)])
    assert all(len(line) == len(head) for line in body)


def test_arms_that_train_something_else_are_an_error() -> None:
    other = {**sample(1, 1), "losses": [1.1, 0.9]}
    with pytest.raises(StageError, match="arm 'torch' trains something else: its first loss is"):
        personalization.check_losses({"splitload": [sample(1, 1)], "torch": [other]})
