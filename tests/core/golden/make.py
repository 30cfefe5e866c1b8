"""Made the golden bundle of format version 1: `python tests/core/golden/make.py`. Kept as its record; not run again."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import runtime_models  # noqa: E402


def main() -> None:
    """Write `v1.splitload` and the outputs of the uncut model."""
    feeds = runtime_models.feeds()
    with tempfile.TemporaryDirectory() as made:
        model = Path(made) / "chain.onnx"
        onnx.save(runtime_models.chain(), model)
        bundle = runtime_models.bundle(model, Path(made) / "v1.splitload", num_stages=3)
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        outputs = session.run(None, feeds)
        shutil.copytree(bundle, HERE / "v1.splitload")
    names = [arg.name for arg in session.get_outputs()]
    expected = {
        "feeds": {name: value.tolist() for name, value in feeds.items()},
        "outputs": {name: value.tolist() for name, value in zip(names, outputs, strict=True)},
    }
    (HERE / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
