"""Makes, runs or times a bundle under whatever onnxruntime stands first on the path; what `commands.matrix` starts.

The job is a JSON object in the first argument, the answer one on stdout.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

NUM_STAGES = 2


def make(job: dict[str, Any]) -> dict[str, Any]:
    """Write a bundle of two even stages, native and portable, with what it answers beside it."""
    from splitload.build.assemble import VariantPlan, build_bundle
    from splitload.frontends.onnx import Source, load_graph
    from splitload.plan.partition import Partition

    source = Source.open(Path(job["model"]), job["name"])
    native, portable = (load_graph(source, kind, Path(job["cache"])) for kind in ("native", "portable"))
    count = len(native.blocks)
    plans = [
        VariantPlan(native, Partition.of(count, [count // NUM_STAGES] if count >= NUM_STAGES else []), NUM_STAGES),
        VariantPlan(portable, Partition(len(portable.blocks)), 1),
    ]
    notes: list[str] = []
    bundle = Path(job["bundle"])
    manifest = build_bundle(bundle, plans, device="host", on_note=notes.append)
    answers = _answers(bundle)
    np.savez(job["answers"], *answers["outputs"])
    needs = manifest.variants[0].needs
    canary = needs.canary if needs is not None else None
    canary_bytes = None if canary is None else canary.graph.bytes + canary.answers.bytes
    return {"operators": needs.operators if needs else [], "canary_bytes": canary_bytes, "notes": notes}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run a bundle and compare with what it answered where it was made."""
    found = _answers(Path(job["bundle"]))
    with np.load(job["answers"], allow_pickle=False) as stored:
        expected = [stored[name] for name in stored.files]
    pairs = list(zip(found.pop("outputs"), expected, strict=True))
    return found | {
        "bit_equal": all(np.array_equal(got, wanted) for got, wanted in pairs),
        "relative_difference": max(
            float(np.abs(got.astype(np.float64) - wanted).max() / (np.abs(wanted).max() or 1.0))
            for got, wanted in pairs
        ),
    }


def ttfo(job: dict[str, Any]) -> dict[str, Any]:
    """Time one load call to the first output, by a loader or by a plain session."""
    import onnxruntime as ort

    import splitload
    from splitload.bundle.read import read_manifest
    from splitload.runtime.inputs import example_inputs

    feeds = example_inputs(read_manifest(Path(job["bundle"])).inputs)
    if job["arm"] == "stock":
        start = time.perf_counter()
        session = ort.InferenceSession(job["model"], providers=["CPUExecutionProvider"])
        session.run(None, feeds)
        return {"ttfo_s": time.perf_counter() - start, "variant": None}
    start = time.perf_counter()
    model = splitload.ParallelLoader(job["bundle"])
    model.run(None, feeds)
    end = time.perf_counter()
    model.close()
    return {"ttfo_s": end - start, "variant": model.variant.kind}


def _answers(bundle: Path) -> dict[str, Any]:
    """Return a bundle's outputs on made-up inputs, which variant gave them, and why it was no native one."""
    from splitload import ParallelLoader
    from splitload.runtime.inputs import example_inputs

    with ParallelLoader(bundle, upgrade=False) as model:
        outputs = model.run(None, example_inputs(model.manifest.inputs))
        return {"variant": model.variant.kind, "why_portable": model.why_portable, "outputs": outputs}


def main() -> int:
    """Do the job of the first argument."""
    import onnxruntime as ort

    warnings.simplefilter("ignore")
    job = json.loads(sys.argv[1])
    steps = {"make": make, "run": run, "ttfo": ttfo}
    answer = steps[job["step"]](job) | {"onnxruntime": ort.__version__}
    print(json.dumps(answer))  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
