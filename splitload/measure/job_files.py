"""Which files a job needs in its folder: what travels with it to another machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from splitload.base.errors import UsageError
from splitload.bundle.manifest import MANIFEST
from splitload.bundle.read import check_references, read_manifest
from splitload.bundle.references import weight_files
from splitload.measure.arm_names import PORTABLE_ARMS
from splitload.measure.graph_jobs import GRAPH_JOBS, OptimizeGraph, RunGraph, RunStages, graphs_of, output_files
from splitload.measure.job import Job, LoadModel
from splitload.measure.piece_jobs import SHARING_JOBS
from splitload.measure.stage_jobs import STAGE_JOBS, StageFile

PORTABLE_JOBS: tuple[type[Job], ...] = (
    LoadModel,
    *STAGE_JOBS,
    *GRAPH_JOBS,
    *SHARING_JOBS,
)  # that another machine may be sent


def check_portable(job: Job) -> None:
    """Make sure that a job can be done on any machine: it needs onnxruntime alone, and files that lie in its folder.

    Raises:
        UsageError: If it cannot.
    """
    if not isinstance(job, PORTABLE_JOBS):
        raise UsageError(f"a job of kind '{job.kind}' is done on this machine alone")
    if isinstance(job, LoadModel):
        if job.arm not in PORTABLE_ARMS:
            others = ", ".join(PORTABLE_ARMS)
            raise UsageError(f"arm '{job.arm}' is measured on this machine alone; another one measures {others}")
        more = (job.module, job.cache, job.weights, job.batch)
        path = PurePosixPath(job.path)
        if path.is_absolute() or ".." in path.parts or any(each is not None for each in more):
            raise UsageError(f"arm '{job.arm}' loads a file or a bundle in the job's folder, and nothing else")


def job_files(job: Job, folder: Path) -> dict[str, Path]:
    """Return the files that a job reads, by their names in its folder, with "/" between parts.

    Args:
        job: One that can be done on any machine.
        folder: Its folder; parts of it may be links.

    Raises:
        UsageError: If the job stays on this machine.
        BundleError: If a graph or manifest cannot be read.
        OSError: If a file cannot be read.
    """
    check_portable(job)
    names = [each.file for each in _inputs(job) if each.file is not None]
    if isinstance(job, LoadModel):
        names += _of_bundle(job.path, folder) if (folder / job.path).is_dir() else _of_graph(job.path, folder)
    else:
        for graph in (*(stage.graph for stage in _stages(job)), *graphs_of(job)):
            names += _of_graph(graph, folder)
    return {name: folder / name for name in dict.fromkeys(names)}


def files_made(job: Job, answer: dict[str, Any]) -> list[str]:
    """Return the names of the files that a job has written into its folder, as its answer says."""
    if isinstance(job, OptimizeGraph):
        weights = [job.weights_file] if job.weights_file is not None and answer.get("weights") else []
        return [] if answer["refused"] is not None else [job.target, *weights]
    return output_files(answer.get("outputs") or []) if isinstance(job, LoadModel | RunGraph | RunStages) else []


def _inputs(job: Job) -> Any:
    return getattr(job, "inputs", ())


def _stages(job: Job) -> Iterator[StageFile]:
    """Yield the stages of a job on stages."""
    for name in ("chain", "segments", "pair", "stages"):
        yield from getattr(job, name, ())


def _of_graph(name: str, folder: Path) -> list[str]:
    """Return a graph file and the files that it reads weights from, which lie beside it."""
    if name.endswith(".ort"):
        return [name]
    if not name.endswith(".onnx"):  # its references would not be looked at
        raise UsageError(f"a graph is an .onnx or .ort file, '{name:.80}' is neither")
    parent = name.rpartition("/")[0]
    return [name, *(f"{parent}/{each}" if parent else each for each in weight_files(folder / name))]


def _of_bundle(name: str, folder: Path) -> list[str]:
    """Return the manifest of a bundle and the files that it names, beside which its graphs read none."""
    prefix = "" if name == "." else f"{name}/"
    manifest = read_manifest(folder / name)
    check_references(folder / name, manifest)
    return [f"{prefix}{each}" for each in (MANIFEST, *(file.name for file in manifest.files()))]
