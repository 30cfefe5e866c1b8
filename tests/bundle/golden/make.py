"""Made the golden bundles, one of each format version: `python tests/bundle/golden/make.py v2`.

Kept as their record; none is made again. Version 1 was made by the same code, portable only, as it stood then.
`v2-filters-at-load` and `v2-filters` have weights that the portable stage restores: the first was made by the code of
before, which had the runtime do that when it loads the stage.
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

import models  # noqa: E402
import runtime_models  # noqa: E402

from splitload.build.residency import with_residency  # noqa: E402
from splitload.bundle.read import read_manifest  # noqa: E402
from splitload.bundle.write import write_manifest  # noqa: E402
from splitload.plan.memory import StageNeeds  # noqa: E402


def main() -> None:
    """Write the bundle that is named, and the outputs of the uncut model."""
    name = f"{sys.argv[1]}.splitload"
    has_filters = "filters" in name
    feeds = {"x": models.floats(1, 3, 8, 8)} if has_filters else runtime_models.feeds()
    num_stages = 1 if has_filters else 3
    with tempfile.TemporaryDirectory() as made:
        model = Path(made) / "chain.onnx"
        onnx.save(filters() if has_filters else runtime_models.chain(), model)
        bundle = runtime_models.bundle(model, Path(made) / name, num_stages, native=sys.argv[1] != "v1")
        if sys.argv[1] == "v3":
            with_what_memory_it_takes(bundle)
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        outputs = session.run(None, feeds)
        shutil.copytree(bundle, HERE / name)
    names = [arg.name for arg in session.get_outputs()]
    expected = {
        "feeds": {name: value.tolist() for name, value in feeds.items()},
        "outputs": {name: value.tolist() for name, value in zip(names, outputs, strict=True)},
    }
    (HERE / ("expected-filters.json" if has_filters else "expected.json")).write_text(
        json.dumps(expected) + "\n", encoding="utf-8"
    )


def filters() -> onnx.ModelProto:
    """Return a model with filters of an image, in blocks both ways, and 1 x 1."""
    return models.text(
        """g (float[1,3,8,8] x) => (float[1,32,1,1] y) {
            a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, first)
            b = Relu(a)
            c = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (b, second)
            d = Relu(c)
            e = Conv <kernel_shape=[1,1]> (d, third)
            y = GlobalAveragePool(e)
        }""",
        first=models.floats(16, 3, 3, 3),
        second=models.floats(32, 16, 3, 3) / 12,
        third=models.floats(32, 32, 1, 1) / 6,
    )


def with_what_memory_it_takes(bundle: Path) -> None:
    """Have a bundle say all that version 3 brought."""
    manifest = read_manifest(bundle)
    native, portable = manifest.variants
    needs = [StageNeeds(stage.weights_bytes, 1 << 16, 1 << 12, 1 << 17) for stage in native.stages]
    native = with_residency(native, 4_000_000, needs, arena_bytes=1 << 20, input_bytes=1 << 10)
    write_manifest(bundle, manifest._replace(variants=(native, portable)))


if __name__ == "__main__":
    main()
