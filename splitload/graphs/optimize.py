"""Has onnxruntime optimise a model file once, as a whole, into an entry of the cache."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from splitload.base.entries import making
from splitload.base.errors import ModelError, OutputError
from splitload.graphs.folding import narrow, unfold
from splitload.graphs.here import HERE
from splitload.graphs.hoisting import weights_outside_bodies
from splitload.graphs.integers import faster_integers
from splitload.graphs.layout import block_products_of, channel_block
from splitload.graphs.names import NAME_CLASH, rename_weights
from splitload.graphs.observe import one_line
from splitload.graphs.proto import bodies
from splitload.graphs.read import parse_model
from splitload.graphs.runtime import Beside, GraphRuntime, Level, Refusal, is_of_device
from splitload.graphs.tidy import join_concats
from splitload.plan.graph import GraphKind


def optimize_into(
    folder: Path,
    path: Path,
    kind: GraphKind,
    feeds: Mapping[str, Any] | None,
    *,
    model: Path,
    model_bytes: int,
    runtime: GraphRuntime = HERE,
    finish: Callable[[Path], None] = lambda _: None,
) -> None:
    """Optimise a model file as far as onnxruntime can, and put the result into the cache, whole or not at all.

    Args:
        folder: Of the cache; `model.onnx` in it will be the optimised model.
        path: The file.
        kind: How it is optimised.
        feeds: Inputs of the runs that decide what is stored in blocks, and in what way integers are computed; made up
            where they are missing.
        model: The user's file that it is, or is a part of, for errors.
        model_bytes: Size of that model, with its external data.
        runtime: What it is for.
        finish: Called with the folder of the optimised model, before it is put in place.

    Raises:
        ModelError: If onnxruntime cannot load it.
        OutputError: If it cannot be written.
    """
    wanted: list[Level] = ["all", "basic", "none"] if kind == "native" else ["basic", "none"]
    errors: list[Exception] = []
    for level in wanted:
        try:
            with making(folder, "the optimised model") as made:
                with _refusals():
                    plain = weights_outside_bodies(path, made)
                    _optimize_and_tidy(plain, made, level, runtime)
                if level == "all":
                    again = partial(_optimize_and_tidy, level=level, runtime=runtime)
                    plain = faster_integers(plain, made, feeds, again, runtime)
                    block_products_of(made / "model.onnx", feeds, runtime)
                    narrow(made / "model.onnx", plain)
                for copy in filter(Path.is_dir, made.iterdir()):
                    shutil.rmtree(copy)
                finish(made)
            return
        except _NotOptimizedError as refused:
            errors.append(refused.error)
            refuse_full_disk(folder.parent, model_bytes, refused.error)
    raise ModelError(f"onnxruntime {runtime.version} cannot load '{model}': {one_line(errors[0])}")


class _NotOptimizedError(Exception):
    """What onnxruntime raised instead of optimising a model; it has no common root for its errors."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Raise `_NotOptimizedError` for what goes wrong, but for files that cannot be read or written, and devices."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # onnxruntime has no common root for its errors
        if is_of_device(error):
            raise
        raise _NotOptimizedError(error) from error


def _optimize_and_tidy(path: Path, folder: Path, level: Level, runtime: GraphRuntime) -> None:
    """Have onnxruntime optimise `path` into `folder`, but for what that costs in size, and join what it can."""
    optimize(path, folder, level, runtime)
    unfold(folder / "model.onnx", path, channel_block(runtime), native=level == "all")
    _join_concats_of_file(folder / "model.onnx")


def refuse_full_disk(folder: Path, needed_bytes: int, error: Exception) -> None:
    """Raise `OutputError` if `error` came from a disk with no room for the optimised model."""
    free = shutil.disk_usage(folder).free  # what was written is removed already
    writing = any(words in str(error) for words in ("Failed to write", "Protobuf serialization failed"))
    if "No space left" in str(error) or free < (needed_bytes if writing else needed_bytes // 8):
        raise OutputError(f"no space left for the optimised model in '{folder}': {free >> 20} MiB are free") from error
    if writing:
        raise OutputError(f"cannot write the optimised model to '{folder}': {one_line(error)}") from error


def optimize(path: Path, folder: Path, level: Level, runtime: GraphRuntime = HERE) -> None:
    """Have onnxruntime optimise `path` into `folder`, and make sure that what it wrote loads.

    Raises:
        Refusal: If it does not load one of the two.
    """
    target = folder / "model.onnx"
    try:
        signature = runtime.optimize(path, target, level)
    except Refusal as refused:
        if NAME_CLASH not in str(refused):
            raise
        model = parse_model(path)
        rename_weights(model.graph)
        signature = runtime.optimize(Beside(path.parent, model.SerializeToString()), target, level)
    _mend(target, {spec.name for spec in signature.inputs})
    runtime.open(target)


def _join_concats_of_file(path: Path) -> None:
    """Have each Concat read what an earlier one has joined already; see `tidy`."""
    model = parse_model(path)
    if join_concats(model.graph):
        path.write_bytes(model.SerializeToString())


def _mend(path: Path, inputs: set[str]) -> None:
    """Take out of a file that onnxruntime wrote what keeps it from being loaded.

    Declarations of inputs that were defaults for weights: folding leaves them behind without a value. Weights of bodies
    that stand there a second time: 1.26 to 1.28 write them so.
    """
    model = parse_model(path)
    kept = [value for value in model.graph.input if value.name in inputs]
    repeated = _weights_once(model.graph)
    if repeated or len(kept) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)
        path.write_bytes(model.SerializeToString())


def _weights_once(graph: Any) -> bool:
    """Keep one of the weights of the same name in each body of a graph; return whether any was taken out."""
    repeated = False
    for body in (body for node in graph.node for body in bodies(node)):
        once = {tensor.name: tensor for tensor in body.initializer}
        if len(once) < len(body.initializer):
            del body.initializer[:]
            body.initializer.extend(once.values())
            repeated = True
        repeated |= _weights_once(body)
    return repeated
