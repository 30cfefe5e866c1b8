"""The study of personalization on digits runs end to end, and its record says what its table shows."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitload.studies import digits, personal_tables, records

if find_spec("sklearn") is None:  # it takes seconds to import, which only who needs it is to pay
    pytest.skip("scikit-learn is not installed", allow_module_level=True)
pytest.importorskip("torch")

SPLIT = {"pretrain": 60, "train": 40, "valid": 10, "test": 20}
QUICK = digits.Tuning(epochs=2, batch_size=16, learning_rate=1e-3, patience=5)


def test_parts_share_no_sample_and_the_user_sees_otherwise() -> None:
    numbers = np.arange(130)
    x = np.broadcast_to(numbers[:, None, None, None] / 1000, (130, 1, 4, 4)).astype("f4").copy()
    x[:, 0, 0, :] = 1  # the upper edge
    parts, names = digits.parts_of(digits.Labelled(x, numbers % 10), 3, SPLIT)
    assert sorted(names) == list(range(10))
    seen: list[int] = []
    for name, part in parts.items():
        assert len(part.x) == len(part.y) == SPLIT[name]
        edge, inside = (part.x[:, 0, 0, 0], part.x[:, 0, 2, 2])
        shown = np.rint((inside if name == "pretrain" else 1 - inside) * 1000).astype(int)
        seen += shown.tolist()
        assert np.array_equal(part.y, shown % 10 if name == "pretrain" else np.array(names)[shown % 10])
        assert np.all(edge == 1) if name == "pretrain" else np.all(part.x[:, 0, :, 0] == 0), "a quarter turn"
    assert sorted(seen) == numbers.tolist()
    again, _ = digits.parts_of(digits.Labelled(x, numbers % 10), 3, SPLIT)
    np.testing.assert_array_equal(again["test"].x, parts["test"].x)


def test_the_record_and_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(digits, "SPLIT", SPLIT)
    monkeypatch.setattr(digits, "PRETRAINING", {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3})
    monkeypatch.setattr(digits, "TUNING", QUICK)
    file = tmp_path / "digits.json"
    assert digits.main(["--seeds", "1", "-o", str(file)]) == 0
    assert "seed 0: accuracy" in capsys.readouterr().out
    record: dict[str, Any] = json.loads(file.read_text())
    assert record["kind"] == "digits"
    assert "scikit-learn" in record["provenance"]["packages"]
    (row,) = record["rows"]
    assert row["samples"] == SPLIT
    assert set(row["arms"]) == {"splitload", "torch", "torch_same_order"}
    for arm in row["arms"].values():
        assert len(arm["losses"]) == len(arm["valid_losses"]) == QUICK.epochs
        assert arm["accuracy"] == pytest.approx(np.mean(np.array(arm["predicted"]) == row["test_classes"]))
    assert row["same_order_loss_difference"] < 1e-3, "the bundle trains what PyTorch trains"
    assert row["arms"]["splitload"]["losses"][0] != pytest.approx(row["arms"]["torch"]["losses"][0], rel=1e-3)
    head, body = personal_tables.digits([("d.json", record)])
    assert all(len(line) == len(head) for line in body)
    assert [line[0] for line in body] == ["0", "mean", "largest"]
    assert "| mean |" in records.fill("<!-- results:digits -->\n<!-- end -->", {"digits": [("d.json", record)]})
