"""ParallelLoader: loads the stages of a bundle on a thread pool, and infers through those that are there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from splitload.bundle import Manifest, TensorSpec, Variant, Verify, read_manifest
from splitload.errors import StageError, UsageError
from splitload.machine import available_threads, cpu_architecture
from splitload.schedule import Schedule, Task


def open_session(graph: Path, *, prepack: bool = False) -> Any:
    """Return an onnxruntime session on an optimised graph file, made as quickly as can be.

    The file is taken as it is, and weights stay mapped from their file unless `prepack` asks for rearranged copies.
    Inference threads sleep while they wait: spinning pools of several stages would fight for the processors. (One
    process-wide pool would do as well, but once it exists onnxruntime refuses every session that does not use it,
    those of the caller included.)

    Args:
        graph: The ONNX file, already optimised.
        prepack: Whether to rearrange weights for faster inference.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


class ParallelLoader:
    """A model that answers while it loads; a drop-in for `onnxruntime.InferenceSession`.

    Returns at once. `threads` loading threads take the stages in order; with fewer stages than threads all load at
    the same time, otherwise the rest wait their turn while loaded stages infer (Algorithm 2). `run` waits for each
    stage only when it gets there. May be called from many threads at any time. The first stage that fails cancels
    the rest, and its error is what every call raises.

    Args:
        bundle: The `NAME.splitload` folder.
        threads: Loading threads, at least 1; None takes the bundle's execution scheme, but no more threads than the
            process has processors.
        overlap: Whether inference may start before all stages are loaded; False waits for all.
        verify: What is checked first: "none", "sizes" or "hashes" of the files.
        upgrade: Whether stages are made anew in the background after the first answer, with weights rearranged for
            speed, and swapped in between runs.
        on_progress: Called as `on_progress(stages_loaded, num_stages)` from a loading thread after each stage.

    Raises:
        BundleError: If the bundle is incomplete or damaged.
        UsageError: If `threads` is below 1.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        threads: int | None = None,
        overlap: bool = True,
        verify: Verify = "sizes",
        upgrade: bool = True,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise UsageError(f"threads must be a whole number of at least 1, it is {threads!r}")
        self._start = time.perf_counter()
        self._folder = Path(bundle)
        self.manifest: Manifest = read_manifest(self._folder, verify)
        import onnxruntime as ort

        self._ort = ort
        self.variant: Variant = self.manifest.variant_for(cpu_architecture(), ort.__version__)
        stages = self.variant.stages
        self._overlap = overlap and self.variant.overlap
        self._upgrade = upgrade and not all(stage.prepack for stage in stages)
        self._on_progress = on_progress
        self._sessions: list[Any] = [None] * len(stages)
        self._events = [threading.Event() for _ in stages]
        self._all_loaded = threading.Event()
        self._upgraded = threading.Event()
        self._lock = threading.Lock()
        self._next = 0
        self._loaded = 0
        self._error: Exception | None = None
        self._closed = False
        self._loads: dict[int, Task] = {}
        self._first_runs: dict[int, Task] = {}
        self.threads = min(threads or min(self.variant.threads, available_threads()), len(stages))
        self._workers = [
            threading.Thread(target=self._load_stages, args=(thread,), name=f"splitload-load-{thread}", daemon=True)
            for thread in range(self.threads)
        ]
        self._upgrader: threading.Thread | None = None
        for worker in self._workers:
            worker.start()

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """Compute the named outputs, as `onnxruntime.InferenceSession.run` does and with its errors.

        Stages that none of the outputs needs are neither waited for nor run.

        Args:
            output_names: Names of outputs; None or empty for all.
            input_feed: A value for each input, by name.
            run_options: An `onnxruntime.RunOptions`, handed to every stage.

        Returns:
            One value for each output name: a numpy array, or a list or dict where the model gives one.

        Raises:
            ValueError: If a required input is missing.
            StageError: If a stage could not be loaded, or the loader is closed.
        """
        wanted = list(output_names) if output_names else [spec.name for spec in self.manifest.outputs]
        self._check_call(wanted, input_feed)
        if not self._overlap:
            self.wait()
        values: dict[str, Any] = dict(input_feed)
        for index, needed, last_reads in self._steps(wanted):
            stage = self.variant.stages[index]
            session = self._session(index)
            start = time.perf_counter()
            results = run_stage(self._ort, session, stage, needed, values, run_options)
            if index not in self._first_runs:
                end = time.perf_counter()
                task = Task(index, "infer", 0, start - self._start, end - self._start)
                self._first_runs.setdefault(index, task)
            for name in last_reads:
                values.pop(name, None)
            values.update(zip(needed, results, strict=True))
        self._start_upgrade()
        return [to_python(self._ort, values[name]) for name in wanted]

    def get_inputs(self) -> list[TensorSpec]:
        """Return the model's inputs, each with `name`, `type` and `shape`; needs no stage."""
        return list(self.manifest.inputs)

    def get_outputs(self) -> list[TensorSpec]:
        """Return the model's outputs, each with `name`, `type` and `shape`; needs no stage."""
        return list(self.manifest.outputs)

    def wait(self, until: str | float = "loaded", timeout: float | None = None) -> bool:
        """Wait until all stages are loaded ("loaded") or made anew for speed ("upgraded").

        `wait(2.5)` is `wait("loaded", 2.5)`. Waiting for "upgraded" does not wait for a first `run`, it starts the
        upgrade itself; it returns at once when `upgrade` is off.

        Returns:
            Whether that was reached within `timeout` seconds (None: no limit).

        Raises:
            StageError: If a stage could not be loaded, or the loader is closed.
        """
        if isinstance(until, int | float):
            until, timeout = "loaded", float(until)
        if until not in ("loaded", "upgraded"):
            raise UsageError(f"wait takes 'loaded' or 'upgraded', not {until!r}")
        deadline = None if timeout is None else time.perf_counter() + timeout
        if not self._all_loaded.wait(timeout):
            return False
        self._raise_if_failed()
        if until == "loaded" or not self._upgrade:
            return True
        self._start_upgrade()
        reached = self._upgraded.wait(None if deadline is None else max(0.0, deadline - time.perf_counter()))
        self._raise_if_failed()
        return reached

    @property
    def ready(self) -> bool:
        """Whether every stage is loaded."""
        return self._loaded == len(self._sessions) and not self._closed

    @property
    def timeline(self) -> Schedule:
        """The loads so far and each stage's first inference, in seconds from the load call, as measured."""
        with self._lock:
            tasks = [*self._loads.values(), *self._first_runs.copy().values()]
        return Schedule(tuple(sorted(tasks, key=lambda task: (task.start_s, task.end_s))), "measured")

    def close(self) -> None:
        """Stop loading and let go of all stages; calls under way end with an error or their result."""
        with self._lock:
            self._closed = True
            self._next = len(self._sessions)
            for event in self._events:
                event.set()
            self._all_loaded.set()
            self._upgraded.set()
        for worker in [*self._workers, self._upgrader]:
            if worker is not None and worker is not threading.current_thread():
                worker.join()
        self._sessions = [None] * len(self._sessions)

    def __enter__(self) -> ParallelLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load_stages(self, thread: int) -> None:
        """Load stages until none is left; the body of a loading thread."""
        while True:
            with self._lock:
                index = self._next
                if index >= len(self._sessions):
                    return
                self._next += 1
            stage = self.variant.stages[index]
            start = time.perf_counter()
            try:
                session = open_session(self._folder / stage.graph.name, prepack=stage.prepack)
            except Exception as error:  # onnxruntime has no common root for its errors
                self._fail(index, error)
                return
            end = time.perf_counter()
            with self._lock:
                if self._closed:
                    return
                self._sessions[index] = session
                self._loads[index] = Task(index, "load", thread, start - self._start, end - self._start)
                self._loaded += 1
                loaded = self._loaded
            self._events[index].set()
            if loaded == len(self._sessions):
                self._all_loaded.set()
            if self._on_progress is not None:
                self._on_progress(loaded, len(self._sessions))

    def _fail(self, index: int, error: Exception) -> None:
        """Keep the first error, hand out no more stages, and wake everyone who waits."""
        with self._lock:
            if self._error is None:
                text = " ".join(str(error).split())[:300]
                self._error = StageError(f"stage {index + 1} of '{self._folder}' cannot be loaded: {text}")
                self._error.__cause__ = error
            self._next = len(self._sessions)
            for event in self._events:
                event.set()
            self._all_loaded.set()
            self._upgraded.set()

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise StageError(str(self._error)) from self._error.__cause__
        if self._closed:
            raise StageError(f"'{self._folder}' was closed")

    def _session(self, index: int) -> Any:
        """Return the session of a stage, waiting for it."""
        self._events[index].wait()
        session = self._sessions[index]
        if session is None or self._error is not None:
            self._raise_if_failed()
        return session

    def _steps(self, wanted: Sequence[str]) -> list[tuple[int, list[str], list[str]]]:
        """Return the stages that `wanted` needs: index, outputs needed, tensors read for the last time."""
        alive = set(wanted)
        steps = []
        for index in range(len(self.variant.stages) - 1, -1, -1):
            stage = self.variant.stages[index]
            needed = [spec.name for spec in stage.outputs if spec.name in alive]
            if needed:
                steps.append((index, needed, [name for name in stage.inputs if name not in alive]))
                alive.update(stage.inputs)
        return steps[::-1]

    def _check_call(self, wanted: Sequence[str], feeds: Mapping[str, Any]) -> None:
        """Raise what an InferenceSession raises for missing inputs and unknown names."""
        inputs = self.manifest.inputs
        missing = [spec.name for spec in inputs if spec.name not in feeds and not spec.type.startswith("optional")]
        if missing:
            raise ValueError(f"Required inputs ({missing}) are missing from input feed ({list(feeds)}).")
        for what, names, known in (("input", feeds, inputs), ("output", wanted, self.manifest.outputs)):
            for name in names:
                if all(name != spec.name for spec in known):
                    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

                    raise InvalidArgument(f"Invalid {what} name: {name}; the model has {[spec.name for spec in known]}")

    def _start_upgrade(self) -> None:
        """Begin to make stages anew for speed, once, when all are loaded."""
        if not self._upgrade or self._upgrader is not None or not self._all_loaded.is_set():
            return
        with self._lock:
            if self._upgrader is None and not self._closed and self._error is None:
                self._upgrader = threading.Thread(target=self._make_faster, name="splitload-upgrade", daemon=True)
                self._upgrader.start()

    def _make_faster(self) -> None:
        """Replace each session by one with prepacked weights; a stage that fails keeps the one it has."""
        for index, stage in enumerate(self.variant.stages):
            if self._closed:
                break
            if stage.prepack:
                continue
            try:
                session = open_session(self._folder / stage.graph.name, prepack=True)
            except Exception:  # noqa: S112 - the stage answers as before
                continue
            with self._lock:
                if not self._closed:
                    self._sessions[index] = session
        self._upgraded.set()


class StageIO(Protocol):
    """What a stage reads and gives; manifest entries and freshly written stages both fit."""

    @property
    def inputs(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...  # noqa: D102


def run_stage(
    ort: Any, session: Any, stage: StageIO, needed: list[str], values: Mapping[str, Any], run_options: Any
) -> list[Any]:
    """Run one stage; plain tensors stay in the runtime, so that nothing is copied between stages.

    Args:
        ort: The onnxruntime module.
        session: The stage's session.
        stage: Its inputs and outputs.
        needed: Names of the outputs wanted.
        values: At least the stage's inputs, as arrays or OrtValues.
        run_options: An `onnxruntime.RunOptions` or None.

    Returns:
        One value for each name in `needed`.
    """
    feeds = {name: values[name] for name in stage.inputs if name in values}
    specs = {spec.name: spec for spec in stage.outputs}
    if all(_is_tensor(ort, value) for value in feeds.values()) and all(
        specs[name].type.startswith("tensor(") for name in needed
    ):
        ready = {name: _to_ort(ort, value) for name, value in feeds.items()}
        return list(session.run_with_ort_values(needed, ready, run_options))
    return list(session.run(needed, {name: to_python(ort, value) for name, value in feeds.items()}, run_options))


def _is_tensor(ort: Any, value: Any) -> bool:
    import numpy as np

    return isinstance(value, np.ndarray | ort.OrtValue)


def _to_ort(ort: Any, value: Any) -> Any:
    return value if isinstance(value, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(value)


def to_python(ort: Any, value: Any) -> Any:
    """Return a tensor as a numpy array, anything else as it is."""
    return value.numpy() if isinstance(value, ort.OrtValue) and value.is_tensor() else value
