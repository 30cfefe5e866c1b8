"""Made the golden bundles, one of each format version: `python tests/bundle/golden/make.py v2`.

Kept as their record; none is made again. Version 1 was made by the same code, portable only, as it stood then.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import runtime_models  # noqa: E402


def main() -> None:
    """Write the bundle that is named, and the outputs of the uncut model."""
    name = f"{sys.argv[1]}.splitload"
    feeds = runtime_models.feeds()
    with tempfile.TemporaryDirectory() as made:
        model = Path(made) / "chain.onnx"
        onnx.save(runtime_models.chain(), model)
        bundle = runtime_models.bundle(model, Path(made) / name, num_stages=3, native=sys.argv[1] != "v1")
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        outputs = session.run(None, feeds)
        shutil.copytree(bundle, HERE / name)
    names = [arg.name for arg in session.get_outputs()]
    expected = {
        "feeds": {name: value.tolist() for name, value in feeds.items()},
        "outputs": {name: value.tolist() for name, value in zip(names, outputs, strict=True)},
    }
    (HERE / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
