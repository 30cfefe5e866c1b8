"""onnxruntime sessions on stage files: made as quickly as can be, and run without copying what goes between stages."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

from splitload.base.machine import inference_threads
from splitload.bundle.manifest import TensorSpec
from splitload.runtime.arena import share_arena
from splitload.runtime.boundaries import Boundaries
from splitload.runtime.feeds import to_ort
from splitload.runtime.forks import making_session
from splitload.runtime.settings import FATAL, SPINNING, file_entries
from splitload.runtime.stock import runtime_path, session_class

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from typing import Any, Protocol

    from splitload.base.regular import StrPath

    class StageIO(Protocol):
        """What a stage reads and gives; manifest entries and freshly written stages both fit."""

        @property
        def inputs(self) -> tuple[str, ...]: ...  # noqa: D102
        @property
        def outputs(self) -> tuple[TensorSpec, ...]: ...  # noqa: D102


def open_session(
    graph: StrPath,
    *,
    prepack: bool = False,
    mapped: bool = True,
    optimize: bool = False,
    background: bool = False,
    options: Any = None,
    share_memory: bool = False,
) -> Any:
    """Return an onnxruntime session on a stage's graph file, made as quickly as can be.

    A graph that was optimised already is taken as it is, and its weights stay mapped from the file. Nothing is planned
    ahead: planning which buffers may be reused takes time that grows with the square of the graph (DenseNet-201: 54 ms
    of 67), and the memory pattern of the first run would cost the second one all its memory again. Inference threads
    spin for a millisecond: from one operator to the next, and no longer than a stage that still loads can wait. They do
    not spin between runs, when another stage's threads have the processors. They run on any processor: tied to one, as
    onnxruntime ties them unless it is told their number, a thread waits there for the thread that loads or infers.

    There is no process-wide thread pool: once onnxruntime has one it refuses every session that does not use it, those
    of the caller included.

    Args:
        graph: The .onnx or .ort file.
        prepack: Whether to rearrange weights for faster inference.
        mapped: Whether the weights of an .ort file stay mapped, or are read into memory.
        optimize: Whether onnxruntime optimises the graph first.
        background: Whether to do the work at low priority; the calling thread keeps it.
        options: An `onnxruntime.SessionOptions` of the caller's to begin with, which is changed: what it says of
            threads, logging and the like holds, but how the file is read and optimised is said here. None for none.
        share_memory: Whether working memory comes from the arena of all stages, or from one of the session's own.
    """
    import onnxruntime as ort

    is_ort = os.fspath(graph).endswith(".ort")
    if options is None:
        options = ort.SessionOptions()
    else:
        options.add_session_config_entry("session.load_model_format", "ORT" if is_ort else "ONNX")
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if options.log_severity_level < 0:  # the caller did not say
        options.log_severity_level = FATAL
    if not options.intra_op_num_threads and options.use_per_session_threads:
        options.intra_op_num_threads = inference_threads()
    options.enable_mem_reuse = options.enable_mem_pattern = False
    for key, value in SPINNING.items():
        if config_entry(options, key) is None:
            options.add_session_config_entry(key, value)
    if share_memory:
        share_arena(ort, options)
    for entry in file_entries(os.fspath(graph), prepack=prepack, mapped=mapped).items():
        options.add_session_config_entry(*entry)
    settings: dict[str, Any] = {"disabled_optimizers": _nothing_at_low_priority()} if background else {}
    settings["enable_fallback"] = 0  # which is to try the same once more, and to print about it
    with making_session():
        return session_class()(runtime_path(graph), options, providers=["CPUExecutionProvider"], **settings)


def config_entry(options: Any, key: str) -> str | None:
    """Return a configuration entry of an `onnxruntime.SessionOptions`, or None where it has none of that name."""
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:
        return None


def _nothing_at_low_priority() -> Iterator[str]:
    """Yield no optimiser to disable, but lower the priority of the thread that asks.

    onnxruntime asks after it has started the session's inference threads, which take over the priority of the thread
    that starts them and must keep the usual one, and before it rearranges weights.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # here a thread has a niceness of its own
    yield from ()


def run_stage(
    ort: Any,
    session: Any,
    stage: StageIO,
    needed: list[str],
    values: Mapping[str, Any],
    run_options: Any,
    *,
    keep: bool = False,
    boundaries: Boundaries | None = None,
) -> list[Any]:
    """Run one stage; plain tensors stay in the runtime, so that nothing is copied between stages.

    Args:
        ort: The onnxruntime module.
        session: The stage's session.
        stage: Its inputs and outputs.
        needed: Names of the outputs wanted.
        values: At least the stage's inputs, as arrays or OrtValues.
        run_options: An `onnxruntime.RunOptions` or None.
        keep: Whether all values are OrtValues and stay such, be they tensors or not.
        boundaries: Where large tensors go; None for the arena.

    Returns:
        One value for each name in `needed`: an OrtValue, an array or whatever else is no tensor.
    """
    feeds = {name: to_ort(ort, values[name]) for name in stage.inputs if name in values}
    types = {spec.name: spec.type for spec in stage.outputs}
    if keep or (
        all(isinstance(value, ort.OrtValue) for value in feeds.values())
        and all(types[name].startswith("tensor(") and types[name] != "tensor(string)" for name in needed)
    ):
        if keep or boundaries is None or not (arrays := boundaries.lend(stage.outputs, needed)):
            return list(session.run_with_ort_values(needed, feeds, run_options))
        try:
            return _run_into(ort, session, needed, feeds, arrays, run_options)
        except Exception:  # a shape is declared wrongly, or the same is raised again
            results = list(session.run_with_ort_values(needed, feeds, run_options))
            boundaries.otherwise.update(arrays)
            return results
    return list(session.run(needed, feeds, run_options))


def _run_into(
    ort: Any, session: Any, needed: list[str], feeds: Mapping[str, Any], arrays: Mapping[str, Any], run_options: Any
) -> list[Any]:
    """Run a session that writes some outputs into arrays; return those as they are and the others as OrtValues."""
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, value)
    for name in needed:
        if name in arrays:
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(arrays[name]))
        else:
            binding.bind_output(name)
    session.run_with_iobinding(binding, run_options)
    return [arrays.get(name, value) for name, value in zip(needed, binding.get_outputs(), strict=True)]


def still_read(values: Mapping[str, Any], stages: Sequence[StageIO], kept: Collection[str] = ()) -> dict[str, Any]:
    """Return those of some values that later stages read, or that are kept in any case; let go of the others."""
    names = {name for stage in stages for name in stage.inputs} | set(kept)
    return {name: value for name, value in values.items() if name in names}


def to_python(ort: Any, value: Any) -> Any:
    """Return a tensor as a numpy array, anything else as it is."""
    return value.numpy() if isinstance(value, ort.OrtValue) and value.is_tensor() else value
