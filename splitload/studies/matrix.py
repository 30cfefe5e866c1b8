"""Native stages made by one onnxruntime and run by another: every pair of versions.

Each version is installed from the package index into a throw-away folder that comes first on the path of the processes
that make and run bundles. A bundle of each model is made by each version and run by each: is the native variant taken,
and how far is its answer from the one where it was made? With `--ttfo` the time to first output of the newest version
on bundles of the oldest is measured too, in fresh processes and in turns: by the native variant with its canary
remembered, by the native variant whose canary runs, by the portable variant (as bundles of version 1 do it), and by a
plain session.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.errors import MissingPackageError, ModelError
from splitload.base.scratch import scratch_folder
from splitload.bundle.manifest import MANIFEST
from splitload.bundle.read import read_manifest
from splitload.bundle.write import write_manifest
from splitload.commands.console import Console
from splitload.frontends import open_source
from splitload.measure.fresh import run_job, save_inputs
from splitload.measure.job import Job, LoadModel
from splitload.measure.process import python
from splitload.studies.matrix_child import MakeBundle, RunBundle
from splitload.studies.records import write_record
from splitload.studies.study import at_least, errors_in_one_line, study_parser

VERSIONS = ("1.26.0", "1.28.0", "1.31.1", "1.32.0")
MODELS = ("zoo:squeezenet1_1", "zoo:mobilenet_v1", "zoo:densenet201", "zoo:convnext_tiny", "zoo:distilbert")
FILES = ("m.splitload", "answers.npz")  # a bundle, and what it answers
WITHIN = 1e-5  # of the largest output
ARMS = ("native", "native, first time", "portable", "stock")


def install(version: str, folder: Path) -> Path:
    """Install one version of onnxruntime into a folder of its own, and return that.

    Raises:
        MissingPackageError: If pip cannot.
    """
    target = folder / f"onnxruntime-{version}"
    words = ["--disable-pip-version-check", "--quiet", "--no-deps", "--target", str(target), f"onnxruntime=={version}"]
    done = subprocess.run(python("pip", "install", *words), cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise MissingPackageError(f"onnxruntime {version} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return target


def child(runtime: Path, cache: Path, job: Job, folder: Path) -> dict[str, Any]:
    """Do a job under a runtime, in a fresh process.

    Raises:
        ModelError: If it fails.
    """
    path = os.pathsep.join(filter(None, (str(runtime), os.environ.get("PYTHONPATH"))))
    environment = {"PYTHONPATH": path, "SPLITLOAD_CACHE": str(cache)}
    answer = run_job(
        job,
        folder,
        lambda line: ModelError(f"'{job.kind}' fails under {runtime.name}: {line}"),
        environment=environment,
    )
    if "onnxruntime" in answer and not runtime.name.endswith(f"-{answer['onnxruntime']}"):
        raise ModelError(f"{runtime.name} is not what was imported, that is {answer['onnxruntime']}")
    return answer


def pairs_of(model: str, path: Path, runtimes: Mapping[str, Path], folder: Path) -> Iterable[dict[str, Any]]:
    """Yield a row for each version that makes a bundle of a model and each that runs it."""
    for maker, made_by in runtimes.items():
        with scratch_folder(folder, ".matrix-") as place:
            made = child(made_by, place / "cache", MakeBundle(model, str(path), *FILES), place)
            shutil.rmtree(place / "cache", ignore_errors=True)
            for runner, run_by in runtimes.items():
                found = child(run_by, place / "cache", RunBundle(*FILES), place)
                yield {"model": model, "made_by": maker, "run_by": runner, **made, **found}


def first_outputs(model: str, path: Path, maker: Path, runner: Path, runs: int, folder: Path) -> dict[str, Any]:
    """Return a row of the times to first output of one version on a bundle that another made."""
    with scratch_folder(folder, ".matrix-") as place:
        bundle, old, cache = place / FILES[0], place / "v1.splitload", place / "cache"
        child(maker, cache, MakeBundle(model, str(path), *FILES), place)
        child(runner, cache, RunBundle(*FILES), place)  # which sees to the version
        shutil.copytree(bundle, old, copy_function=os.link)
        manifest = read_manifest(bundle)
        (old / MANIFEST).unlink()  # it is linked
        exact = tuple(variant._replace(needs=None) for variant in manifest.variants)
        write_manifest(old, manifest._replace(variants=exact))
        inputs = save_inputs(manifest.inputs, {}, place)
        samples: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
        for turn in range(runs + 1):  # the first brings the files into the page cache
            for arm, rows in samples.items():
                memory = place / ("fresh" if arm == "native, first time" else "kept")
                shutil.rmtree(place / "fresh", ignore_errors=True)
                if arm == "stock":
                    job = LoadModel("stock", str(path), inputs, steady=False)
                else:
                    job = LoadModel("splitload", (old if arm == "portable" else bundle).name, inputs, steady=False)
                row = child(runner, memory, job, place)
                if turn:
                    rows.append(row)
    return {
        "model": model,
        "made_by": maker.name.partition("-")[2],
        "run_by": runner.name.partition("-")[2],
        "variants": {arm: sorted({str(row.get("variant")) for row in rows}) for arm, rows in samples.items()},
        "samples_s": {arm: [row["ttfo_s"] for row in rows] for arm, rows in samples.items()},
    }


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Try every pair of versions, and write a record."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("matrix", __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--versions", default=",".join(VERSIONS), metavar="V,V,…", help="default: %(default)s")
    parser.add_argument(
        "--ttfo", action="append", default=[], metavar="MODEL", help="time the first outputs of this too"
    )
    parser.add_argument("--runs", type=at_least(1), default=7, metavar="N", help="samples (default: %(default)s)")
    options = parser.parse_args(words)
    console, cache = Console(json=False), user_cache()
    cache.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with scratch_folder(cache, ".runtimes-") as folder:
        runtimes = {version: install(version, folder) for version in options.versions.split(",")}
        for model in options.models or MODELS:
            for row in pairs_of(model, open_source(model, cache).path, runtimes, folder):
                console.print(
                    f"{model:<20} made by {row['made_by']}, run by {row['run_by']}: {row['variant']}, "
                    f"{'bit-equal' if row['bit_equal'] else format(row['relative_difference'], '.1e')}"
                )
                rows.append({"of": "pair", **row})
        oldest, *_, newest = [*runtimes.values(), *runtimes.values()]
        for model in options.ttfo:
            row = first_outputs(model, open_source(model, cache).path, oldest, newest, options.runs, folder)
            medians = {arm: statistics.median(samples) for arm, samples in row["samples_s"].items()}
            console.print(f"{model}: " + ", ".join(f"{arm} {1e3 * value:.0f} ms" for arm, value in medians.items()))
            rows.append({"of": "ttfo", **row})
    if options.output:
        write_record(options.output, "matrix", "splitload.studies.matrix", words, rows)
    failed = [row for row in rows if row["of"] == "pair" and not is_kept(row)]
    return 1 if failed else 0


def is_kept(row: Mapping[str, Any]) -> bool:
    """Return whether the native variant of a pair was taken, and answers within `WITHIN` of where it was made."""
    return bool(row["variant"] == "native" and row["relative_difference"] <= WITHIN)


if __name__ == "__main__":
    raise SystemExit(main())
