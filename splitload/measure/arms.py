"""The arms: what is compared with what, which of it applies to a model, and the files it needs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from splitload.base.entries import is_whole, making
from splitload.base.errors import MissingPackageError, ModelError, OutputError, UsageError
from splitload.base.machine import available_threads, cpu_architecture
from splitload.base.packages import install
from splitload.frontends.onnx import Source, model_files
from splitload.frontends.torch_packages import INSTALL as INSTALL_TORCH
from splitload.graphs.here import HERE
from splitload.graphs.observe import one_line
from splitload.graphs.runtime import GraphRuntime, Refusal
from splitload.measure.convert import BATCH, tune_into
from splitload.measure.fresh import run_job
from splitload.measure.job import ConvertModel
from splitload.measure.sampling import Arm, saved_inputs
from splitload.plan.graph import ModelGraph

_VERSION = 2  # raise it when a change in `convert` changes a file
# How a torch user builds the modules of the zoo; those that are not here are torchvision's, by the same name.
_ZOO = {
    "distilbert": {"package": "transformers", "name": "DistilBertForSequenceClassification"},
    "lowlight": {"package": "lowlight", "name": "build", "folder": str(Path(__file__).parents[1] / "frontends")},
}
_ZOO_WITHOUT_TORCH = ("mobilenet_v1",)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is compared.

    Attributes:
        model: The MODEL word of the command line.
        source: Its .onnx file.
        graph: The graph that onnxruntime optimised.
        bundle: What the splitload arm opens; None without that arm.
        feeds: Values of inputs that are given.
        cache: The user's cache folder.
        synthetic: Whether the model only stands for its depth: no other engine is asked.
        runtime: What graphs that onnxruntime optimises are made for, and by.
    """

    model: str
    source: Source
    graph: ModelGraph
    bundle: Path | None
    feeds: Mapping[str, Any]
    cache: Path
    synthetic: bool = False
    runtime: GraphRuntime = HERE


def make_arm(name: str, subject: Subject) -> Arm:
    """Return an arm for a model, with the files that it reads made unless the cache holds them.

    Args:
        name: One of `ARMS`.
        subject: What is compared.

    Raises:
        UsageError: If the arm does not apply to the model.
        MissingPackageError: If a package is not installed.
        ModelError: If the engine cannot take the model.
        OutputError: If its files cannot be written.
    """
    return ARMS[name](subject)


def _stock(subject: Subject) -> Arm:
    return Arm("stock", subject.source.path, files=model_files(subject.source.path))


def _tuned(subject: Subject) -> Arm:
    # optimised by onnxruntime alone: splitload's own graph is stored in a layout that nobody gets by hand
    runtime = subject.runtime
    if runtime.is_here:
        file = _converted("tuned", subject, _version("onnxruntime"), cpu_architecture()) / "model.onnx"
    else:
        folder = _folder("tuned", subject, runtime.version, runtime.cpu)
        if not is_whole(folder):
            with making(folder, "the files of arm 'tuned'") as made:
                try:
                    tune_into(subject.source.path, made, runtime)
                except Refusal as error:
                    raise ModelError(f"the model cannot be converted: {one_line(error)}") from error
        file = folder / "model.onnx"
    return Arm("tuned", file, files=model_files(file))


def _ort_format(subject: Subject) -> Arm:
    tuned = _tuned(subject).path
    return Arm("ort-format", _converted("ort-format", subject, tuned.parent.name, graph=tuned) / "model.ort")


def _torch(subject: Subject) -> Arm:
    recipe = _recipe("torch", subject)
    return Arm("torch", _converted("torch", subject, _version("torch")) / "model.pt", job={"module": recipe})


def _torch_mmap(subject: Subject) -> Arm:
    recipe = _recipe("torch-mmap", subject)
    _need("safetensors")
    folder = _converted("torch-mmap", subject, _version("torch"), _version("safetensors"))
    return Arm("torch-mmap", folder / "model.safetensors", job={"module": recipe})


def _openvino(subject: Subject) -> Arm:
    _no_synthetic("openvino", subject)
    _need("openvino")
    file = subject.source.path.resolve()
    key = _key(_version("openvino"), str(file), file.stat().st_mtime_ns)  # by which OpenVINO knows the model again
    cache = subject.cache / "bench" / f"{subject.source.sha256[:24]}-openvino-{key}"
    shutil.rmtree(cache, ignore_errors=True)  # it has no hashes that we could check; the unmeasured run fills it anew
    _make_folder(cache)
    files = (*model_files(file), cache)
    return Arm("openvino", file, files=files, job={"cache": str(cache.resolve())})


def _ncnn(subject: Subject) -> Arm:
    _recipe("ncnn", subject)
    _need("ncnn", "pnnx")
    shapes = {name: getattr(value, "shape", None) for name, value in subject.feeds.items()}
    folder = _converted("ncnn", subject, _version("torch"), _version("pnnx"), sorted(shapes.items()))
    weights = folder / "model.ncnn.bin"
    param = folder / "model.ncnn.param"
    batch = json.loads((folder / BATCH).read_text(encoding="utf-8"))
    job = {"weights": str(weights.resolve()), "batch": batch}
    return Arm("ncnn", param, available_threads(), (param, weights), job)


def _splitload(name: str, subject: Subject) -> Arm:
    assert subject.bundle is not None  # noqa: S101
    return Arm(name, subject.bundle)


ARMS: dict[str, Callable[[Subject], Arm]] = {
    "stock": _stock,
    "tuned": _tuned,
    "ort-format": _ort_format,
    "torch": _torch,
    "torch-mmap": _torch_mmap,
    "openvino": _openvino,
    "ncnn": _ncnn,
    **{name: partial(_splitload, name) for name in ("splitload", "splitload-buffers")},
}


def _recipe(arm: str, subject: Subject) -> dict[str, str]:
    """Return how the fresh process builds the torch module: its package, the name in it, and where that lies."""
    _no_synthetic(arm, subject)
    model = subject.model
    if model.startswith("zoo:"):
        name = model.removeprefix("zoo:")
        if name in _ZOO_WITHOUT_TORCH:
            raise UsageError(f"{model} is no torch module")
        recipe = _ZOO.get(name, {"package": "torchvision", "name": name})
    elif ":" in model and Path(model).suffix != ".onnx" and not Path(model).exists():
        package, _, name = model.partition(":")
        recipe = {"package": package, "name": name, "folder": str(Path.cwd())}
    else:
        raise UsageError("an .onnx file is no torch module; zoo:NAME and package.module:factory are")
    _need("torch", *({recipe["package"]} & {"torchvision", "transformers"}))
    return recipe


def _no_synthetic(arm: str, subject: Subject) -> None:
    if subject.synthetic:
        raise UsageError("a synthetic graph is compared within onnxruntime only")


def _need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            cure = INSTALL_TORCH if package in ("torch", "torchvision", "transformers") else install("bench")
            raise MissingPackageError(f"needs the package '{package}'. Install it: {cure}")


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _key(*parts: Any) -> str:
    return hashlib.sha256(repr((_VERSION, parts)).encode()).hexdigest()[:16]


def _converted(arm: str, subject: Subject, *parts: Any, graph: Path | None = None) -> Path:
    """Return the folder with an arm's files, made by a process of their own unless the cache holds it.

    Args:
        arm: Name of the arm.
        subject: What is compared.
        parts: What the files depend on besides the model.
        graph: The file to convert; None for the model itself.
    """
    folder = _folder(arm, subject, *parts)
    if is_whole(folder):
        return folder
    with (
        making(folder, f"the files of arm '{arm}'") as made,
        saved_inputs(subject.graph.input_tensors(), subject.feeds) as (given, inputs),
    ):
        source = str((graph or subject.source.path).resolve())
        job = ConvertModel(arm, subject.model, source, str(made.resolve()), inputs)
        run_job(job, given, lambda line: ModelError(f"the model cannot be converted: {line}"))
    return folder


def _folder(arm: str, subject: Subject, *parts: Any) -> Path:
    return subject.cache / "bench" / f"{subject.source.sha256[:24]}-{arm}-{_key(*parts)}"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder '{folder}': {error.strerror}") from error
