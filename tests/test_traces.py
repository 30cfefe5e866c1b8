"""What a bundle ships names no folder of the machine that made it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from splitload import cli  # noqa: E402
from splitload.build.assemble import VariantPlan, build_bundle  # noqa: E402
from splitload.frontends.onnx import Source, load_graph  # noqa: E402
from splitload.frontends.torch import quiet  # noqa: E402
from splitload.plan.partition import Partition  # noqa: E402

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
    with quiet():
        torch.onnx.export(module, (torch.rand(2, 8),), model, dynamo=True, external_data=False, verbose=False)
    assert b"home-of-someone" in model.read_bytes()  # in the stack traces of nodes
    trained, native = tmp_path / "net.splitload", tmp_path / "native.splitload"
    assert cli.main(["train", str(model), "--device", "s20", "--trainable", "head", "-o", str(trained)]) == 0
    source = Source.open(model, "net")
    graphs = [load_graph(source, kind, tmp_path / "cache") for kind in ("native", "portable")]
    build_bundle(native, [VariantPlan(graph, Partition(len(graph.blocks)), 1) for graph in graphs], device="host")
    files = [file for folder in (trained, native) for file in folder.rglob("*") if file.is_file()]
    assert {".onnx", ".ort", ".json"} <= {file.suffix for file in files}
    assert [file.name for file in files if b"home-of-someone" in file.read_bytes()] == []
    assert [file.name for file in files if str(tmp_path).encode() in file.read_bytes()] == []
