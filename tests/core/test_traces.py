"""What a bundle ships names no folder of the machine that made it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from splitload import cli  # noqa: E402

MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(8, 16), torch.nn.Linear(16, 3)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))
"""


def test_no_file_of_a_bundle_names_the_building_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home-of-someone"
    home.mkdir()
    (home / "traced_net.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    module = importlib.import_module("traced_net").Net().eval()
    model = home / "net.onnx"
    torch.onnx.export(module, (torch.rand(2, 8),), model, dynamo=True, external_data=False, verbose=False)
    assert b"home-of-someone" in model.read_bytes()  # in the stack traces of nodes
    bundle = tmp_path / "net.splitload"
    assert cli.main(["train", str(model), "--device", "host", "--trainable", "head", "-o", str(bundle)]) == 0
    files = [file for file in bundle.rglob("*") if file.is_file()]
    assert {".onnx", ".ort", ".json"} <= {file.suffix for file in files}
    assert [file.name for file in files if b"home-of-someone" in file.read_bytes()] == []
    assert [file.name for file in files if str(tmp_path).encode() in file.read_bytes()] == []
