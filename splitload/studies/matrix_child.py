"""Makes or runs a bundle under whatever onnxruntime stands first on the path: the fresh process of `matrix`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from splitload.base.fields import Reader
from splitload.measure import __main__ as program
from splitload.measure.job import Job, read_job

NUM_STAGES = 2


@dataclass(frozen=True, slots=True)
class MakeBundle(Job):
    """Make a bundle; the answer has `operators`, `canary_bytes`, `notes` and the version of `onnxruntime`.

    Attributes:
        name: Of the model.
        model: Its .onnx file.
        bundle: Name of the bundle, in the folder.
        answers: Name of the .npz file with what it answers, in the folder.
    """

    kind: ClassVar[str] = "make"
    program: ClassVar[str] = "splitload.studies.matrix_child"
    name: str
    model: str
    bundle: str
    answers: str

    @classmethod
    def read(cls, row: Reader) -> MakeBundle:
        """Return what a message says."""
        return cls(row.text("name"), row.text("model"), row.text("bundle"), row.text("answers"))


@dataclass(frozen=True, slots=True)
class RunBundle(Job):
    """Run a bundle; the answer has `variant`, `why_portable`, `bit_equal`, `relative_difference` and `onnxruntime`.

    Attributes:
        bundle: Name of the bundle, in the folder.
        answers: Name of the .npz file with what it answered where it was made.
    """

    kind: ClassVar[str] = "run"
    program: ClassVar[str] = "splitload.studies.matrix_child"
    bundle: str
    answers: str

    @classmethod
    def read(cls, row: Reader) -> RunBundle:
        """Return what a message says."""
        return cls(row.text("bundle"), row.text("answers"))


def make(job: MakeBundle, folder: Path) -> dict[str, Any]:
    """Write a bundle of two even stages, native and portable, with what it answers beside it."""
    from splitload.build.assemble import Steps, VariantPlan, build_bundle
    from splitload.frontends.onnx import Source, load_graph
    from splitload.plan.partition import Partition

    source = Source.open(Path(job.model), job.name)
    native, portable = (load_graph(source, kind, folder / "cache") for kind in ("native", "portable"))
    count = len(native.blocks)
    plans = [
        VariantPlan(native, Partition.of(count, [count // NUM_STAGES] if count >= NUM_STAGES else []), NUM_STAGES),
        VariantPlan(portable, Partition(len(portable.blocks)), 1),
    ]
    notes: list[str] = []
    bundle = folder / job.bundle
    manifest = build_bundle(bundle, plans, device="host", steps=Steps(on_note=notes.append))
    answers = _answers(bundle)
    np.savez(folder / job.answers, *answers["outputs"])
    needs = manifest.variants[0].needs
    canary = needs.canary if needs is not None else None
    canary_bytes = None if canary is None else canary.graph.bytes + canary.answers.bytes
    return {"operators": needs.operators if needs else [], "canary_bytes": canary_bytes, "notes": notes}


def run(job: RunBundle, folder: Path) -> dict[str, Any]:
    """Run a bundle and compare with what it answered where it was made."""
    found = _answers(folder / job.bundle)
    with np.load(folder / job.answers, allow_pickle=False) as stored:
        expected = [stored[name] for name in stored.files]
    pairs = list(zip(found.pop("outputs"), expected, strict=True))
    return found | {
        "bit_equal": all(np.array_equal(got, wanted) for got, wanted in pairs),
        "relative_difference": max(
            float(np.abs(got.astype(np.float64) - wanted).max() / (np.abs(wanted).max() or 1.0))
            for got, wanted in pairs
        ),
    }


def _answers(bundle: Path) -> dict[str, Any]:
    """Return a bundle's outputs on made-up inputs, which variant gave them, and why it was no native one."""
    from splitload import ParallelLoader
    from splitload.runtime.inputs import example_inputs

    with ParallelLoader(bundle, upgrade=False) as model:
        outputs = model.run(None, example_inputs(model.manifest.inputs))
        return {"variant": model.variant.kind, "why_portable": model.why_portable, "outputs": outputs}


def main() -> None:
    """Do one job."""
    program.main(_answer)


def _answer(message: dict[str, Any], folder: str) -> dict[str, Any]:
    import onnxruntime as ort

    warnings.simplefilter("ignore")
    job = read_job(message, (MakeBundle, RunBundle))
    done = make(job, Path(folder)) if isinstance(job, MakeBundle) else run(job, Path(folder))  # type: ignore[arg-type]
    return {**done, "onnxruntime": ort.__version__}
