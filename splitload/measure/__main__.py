"""The program of every fresh process: does one job, in a folder, and answers with a line of JSON.

The message is that of `job`, which is not imported where the time of the whole process counts: such a process is run by
its path and imports what the user of an engine would import and nothing of splitload, except in the splitload arm. At
the moment that is measured it prints a line and waits for one, so that whoever started it may look at the page cache.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

VERSION = 1  # of the message
LOAD_KEYS = {
    "version", "kind", "arm", "path", "inputs", "threads", "steady", "outputs", "whole", "module", "cache", "weights",
    "batch",
}  # fmt: skip
UNMEASURED_RUNS, STEADY_RUNS, STEADY_S = 3, 10, 1.0
# What loading returns: how to run the model, and what to call after the first output, which waits for work in the
# background and returns the figures that the engine knows better than a clock around the calls.
Opened = tuple[Callable[[], list[Any]], Callable[[], dict[str, Any]]]
Open = Callable[[], Opened]
_MODULES = {
    "stages": "stages", "scheme": "stages", "packed": "stages", "arena": "arena", "convert": "convert",
    "module": "modules", "timed": "timed_pieces", "messages": "timed_pieces",
    **dict.fromkeys(("optimize", "open", "run", "staged", "shapes", "race"), "graph_work"),
}  # fmt: skip


def main(answer_with: Callable[[dict[str, Any], str], dict[str, Any]] | None = None) -> None:
    """Do the job of the file that is the first argument; where that fails, say why in the last line on stderr.

    The second is the folder; where the program is run by its path, the third is where the splitload to import lies. A
    study does its own jobs: `answer_with` is called with the message and the folder.
    """
    if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):  # noqa: PTH100, PTH120 - pathlib is slow to import
        del sys.path[0]
    message, folder, *_ = sys.argv[1:]
    with open(message, encoding="utf-8") as file:  # noqa: PTH123
        job = json.load(file)
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what engines print is no answer

    def done() -> None:
        print("first", file=answer, flush=True)
        sys.stdin.readline()

    try:
        if answer_with is not None:
            figures = answer_with(job, folder)
        elif job["kind"] == "load":
            figures = measure(job, folder, done)
        elif job["kind"] == "epoch":
            figures = dict(beside("epoch")["train"](job, folder, done, sys.modules[__name__]))
        else:
            figures = _answer(job, folder)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
    answer.write(json.dumps(figures) + "\n")
    answer.close()


def own_splitload() -> None:
    """Have splitload be that of whoever started this process, wherever another one is installed."""
    from importlib.machinery import FileFinder, SourceFileLoader

    if len(sys.argv) < 4 or "splitload" in sys.modules:
        return
    finder = FileFinder(sys.argv[3], (SourceFileLoader, [".py"]))

    class Own:
        find_spec = staticmethod(lambda name, *_: finder.find_spec(name) if name == "splitload" else None)

    sys.meta_path.insert(0, Own)


def check(job: dict[str, Any], keys: set[str]) -> None:
    """Raise unless a message is of this version and has these keys, where the typed reader costs too much."""
    if job.get("version") != VERSION or job.keys() != keys:
        raise ValueError(f"the job must be of version {VERSION} and have the keys {sorted(keys)}, it is {job!r:.300}")


def beside(name: str) -> dict[str, Any]:
    """Return what a file beside this one defines, which is compiled or not, as this one is."""
    import runpy

    base, end = os.path.splitext(os.path.abspath(__file__))  # noqa: PTH100, PTH122
    return runpy.run_path(os.path.join(os.path.dirname(base), f"{name}{end}"))  # noqa: PTH118, PTH120


def _answer(message: dict[str, Any], folder: str) -> dict[str, Any]:
    """Have the module of its kind do a job."""
    import importlib
    from pathlib import Path

    from splitload.measure.graph_jobs import GRAPH_JOBS
    from splitload.measure.job import MODEL_JOBS, read_job
    from splitload.measure.piece_jobs import SHARING_JOBS
    from splitload.measure.stage_jobs import STAGE_JOBS

    job = read_job(message, (*MODEL_JOBS, *STAGE_JOBS, *GRAPH_JOBS, *SHARING_JOBS))
    return dict(importlib.import_module(f"splitload.measure.{_MODULES[job.kind]}").answer(job, Path(folder)))


def measure(job: dict[str, Any], folder: str, done: Callable[[], None]) -> dict[str, Any]:
    """Load and run the model; return the figures, and the moment of the first output on the system's clock.

    Where the whole process counts, values are read as late as a program would read them: after the load call.
    """
    check(job, LOAD_KEYS)
    job["path"] = os.path.join(folder, job["path"])  # noqa: PTH118
    feeds: dict[str, Any] = {}
    is_late = job["whole"] and job["arm"] in _LATE
    if not is_late:
        feeds.update(feeds_of(job, folder))
    open_model = ARMS[job["arm"]](job, feeds)
    _, idle = memory_bytes()
    faults = _major_faults()
    start = time.perf_counter()
    run, settle = open_model()
    opened = time.perf_counter()
    if is_late:
        feeds.update(feeds_of(job, folder))
    outputs = run()
    first, first_at = time.perf_counter(), time.monotonic()
    faults = _major_faults() - faults
    done()
    if job["whole"]:
        peak, _ = memory_bytes()
        return {"first_at_s": first_at, "process_peak_memory_bytes": peak}
    known = settle()
    if job["outputs"]:
        known["outputs"] = [saved_output(value, folder, f"output-{number}.npy") for number, value in enumerate(outputs)]
    del outputs
    steady = _steady_runs(run) if job["steady"] else []
    peak, settled = memory_bytes()
    return {
        "ttfo_s": first - start,
        "load_s": opened - start,
        "first_inference_s": first - opened,
        "steady_runs_s": steady,
        "first_at_s": first_at,
        "idle_memory_bytes": idle,
        "peak_memory_bytes": peak,
        "settled_memory_bytes": settled,
        "major_faults": faults,
        **known,
    }


def _steady_runs(run: Callable[[], Any]) -> list[float]:
    """Return the seconds of later inferences."""
    for _ in range(UNMEASURED_RUNS):
        run()
    taken_s: list[float] = []
    began = time.perf_counter()
    while len(taken_s) < STEADY_RUNS and time.perf_counter() - began < STEADY_S:
        before = time.perf_counter()
        run()
        taken_s.append(time.perf_counter() - before)
    return taken_s


def _session(job: dict[str, Any], feeds: dict[str, Any]) -> Open:
    """One onnxruntime session: plain in the stock arm, the file taken as it is in the others.

    Without onnxruntime's Python module, or without numpy, the C library makes it.
    """
    plain, path = job["arm"] == "stock", job["path"]
    try:
        import numpy  # noqa: F401 - without it the module prints a traceback before it raises
        import onnxruntime as ort
    except ModuleNotFoundError:
        own_splitload()
        from splitload.measure.library_session import opener

        return opener(job["arm"], path, feeds)
    if path.encode(errors="surrogatepass") != os.fsencode(path):  # the encoding for files is not UTF-8
        own_splitload()
        from splitload.runtime.stock import runtime_path

        path = runtime_path(path)

    def load() -> Opened:
        options = ort.SessionOptions()
        if not plain:
            ort.set_global_thread_pool_sizes(0, 1)
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.use_per_session_threads = False
            options.add_session_config_entry("session.disable_prepacking", "1")
        if job["arm"] == "ort-format":
            options.add_session_config_entry("session.use_memory_mapped_ort_model", "1")
            options.add_session_config_entry("session.use_ort_model_bytes_for_initializers", "1")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda: list(session.run(None, feeds)), lambda: {"engine": "python", "runtime": ort.__version__}

    return load


def _splitload(job: dict[str, Any], feeds: dict[str, Any]) -> Open:
    """`ParallelLoader`; loads and inferences overlap, so their seconds come from its timeline."""
    own_splitload()
    before = time.perf_counter()
    from splitload import ParallelLoader

    import_s = time.perf_counter() - before
    arrays: Any = "buffers" if job["arm"] == "splitload-buffers" or not has_module("numpy") else "numpy"

    def load() -> Opened:
        model = ParallelLoader(job["path"], threads=job["threads"], arrays=arrays)

        def settle() -> dict[str, Any]:
            done, kind = model.timeline, model.variant.kind
            infer_s = sum(task.end_s - task.start_s for task in done.tasks if task.kind == "infer")
            model.wait("upgraded")
            figures = {"load_s": done.load_makespan_s, "first_inference_s": infer_s, "import_s": import_s}
            words = {"variant": kind, "engine": model.engine, "arrays": arrays, "why_portable": model.why_portable}
            return {**figures, **words, "tasks": [task._asdict() for task in done.tasks]}

        return lambda: model.run(None, feeds), settle

    return load


def _torch(job: dict[str, Any], feeds: dict[str, Any]) -> Open:
    """A torch module, in the way of its arm: see the file beside this one."""
    return beside("torch_arms")["ARMS"][job["arm"]](job, feeds)  # type: ignore[no-any-return]


def _openvino(job: dict[str, Any], feeds: dict[str, Any]) -> Open:
    """OpenVINO with its model cache, which an unmeasured process has filled."""
    import openvino

    def load() -> Opened:
        core = openvino.Core()
        core.set_property({"CACHE_DIR": job["cache"]})
        compiled = core.compile_model(job["path"], "CPU")

        def settle() -> dict[str, Any]:
            if not job["outputs"] and not compiled.get_property("LOADED_FROM_CACHE"):
                raise RuntimeError("the model came from its file, not from the model cache")
            return {}

        return lambda: list(compiled(feeds).values()), settle

    return load


def _ncnn(job: dict[str, Any], feeds: dict[str, Any]) -> Open:
    """Ncnn on the two files of pnnx, used as the script that pnnx writes beside them does."""
    import ncnn
    import numpy as np

    # ncnn has no 64-bit integers
    narrow = [value.astype(np.int32) if value.dtype == np.int64 else value for value in feeds.values()]
    values = list(zip(narrow, job["batch"]["inputs"], strict=True))

    def load() -> Opened:
        net = ncnn.Net()
        net.opt.num_threads = job["threads"]
        if net.load_param(job["path"]) != 0 or net.load_model(job["weights"]) != 0:
            raise RuntimeError("ncnn cannot read the converted model")

        def run() -> list[Any]:
            outputs = []
            with net.create_extractor() as extractor:
                for number, (value, batch) in enumerate(values):
                    extractor.input(f"in{number}", ncnn.Mat(value, batch_index=batch).clone())
                for number, batch in enumerate(job["batch"]["outputs"]):
                    code, output = extractor.extract(f"out{number}")
                    if code != 0:
                        raise RuntimeError(f"ncnn cannot compute output {number} of the converted model")
                    outputs.append(np.array(output.numpy(batch_index=batch)))
            return outputs

        return run, dict

    return load


ARMS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Open]] = {
    "stock": _session,
    "tuned": _session,
    "ort-format": _session,
    "torch": _torch,
    "torch-mmap": _torch,
    "openvino": _openvino,
    "ncnn": _ncnn,
    "splitload": _splitload,
    "splitload-buffers": _splitload,
}
_ON_ONNXRUNTIME = ("stock", "tuned", "ort-format", "splitload", "splitload-buffers")
_LATE = (*_ON_ONNXRUNTIME, "openvino")  # take values when they run


def feeds_of(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return the inputs, as the arm takes them; without numpy those of onnxruntime are buffers."""
    takes_buffers = job["arm"] == "splitload-buffers" or (job["arm"] in _ON_ONNXRUNTIME and not has_module("numpy"))
    feed = _buffer if takes_buffers else _feed
    return {row["name"]: feed(row, folder) for row in job["inputs"]}


def has_module(name: str) -> bool:
    """Return whether a package is installed, without importing it."""
    from importlib.machinery import PathFinder

    return name in sys.modules or PathFinder.find_spec(name) is not None


def _buffer(row: dict[str, Any], folder: str) -> Any:
    """Return one input as a buffer, without numpy where it holds numbers."""
    own_splitload()
    from splitload.runtime.capi.elements import BY_TYPE

    element = BY_TYPE.get(row["type"])
    if element is None:
        return _feed(row, folder)
    if row["file"] is None:
        return _made_up(row, "buffers")
    with open(os.path.join(folder, row["file"]), "rb") as file:  # noqa: PTH118, PTH123
        if element.format in ("", "e"):  # of which Python makes no view
            from splitload.runtime.light_inputs import read_npy

            if (tensor := read_npy(file)) is None:
                raise ValueError(f"'{row['file']}' can be read by numpy alone")
            return tensor
        content = file.read()
    start = 10 + int.from_bytes(content[8:10], "little")  # of the values: the head of version 1 tells its own length
    sizes = content[10:start].partition(b"'shape': (")[2].partition(b")")[0]
    shape = [int(size) for size in sizes.split(b",") if size.strip()]
    view = memoryview(content)[start:]
    return view.cast("B").cast(element.format, shape)  # type: ignore[call-overload]


def _feed(row: dict[str, Any], folder: str) -> Any:
    """Return one input, read from its file, or made up where it is of a type that no file holds."""
    if row["file"] is None:
        return _made_up(row, "numpy")
    import numpy as np

    array = np.load(os.path.join(folder, row["file"]), allow_pickle=False)  # noqa: PTH118
    return array.astype(object) if array.dtype.kind == "U" else array


def _made_up(row: dict[str, Any], arrays: Any) -> Any:
    """Return a value for an input that has no file."""
    own_splitload()
    from splitload.bundle.manifest import TensorSpec
    from splitload.runtime.inputs import example_inputs

    spec = TensorSpec(row["name"], row["type"], row["shape"])
    return example_inputs([spec], arrays=arrays)[spec.name]


def saved_output(value: Any, folder: str, file: str) -> str | None:
    """Save an output for the comparison; return its file, or None if it is no array."""
    path = os.path.join(folder, file)  # noqa: PTH118
    if type(value).__module__.startswith("splitload."):  # a tensor
        from splitload.runtime.light_inputs import write_npy

        write_npy(path, value)
        return file
    import numpy as np

    if not isinstance(value, np.ndarray):
        return None
    array = value.astype(str) if value.dtype == object else value
    np.save(path, array, allow_pickle=False)
    return file


def _major_faults() -> int:
    """Return how often this process has waited for a page to be read from storage."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def memory_bytes() -> tuple[int | None, int | None]:
    """Return the largest and the present resident size of this process, None where the system does not tell."""
    try:  # on Linux, where ru_maxrss starts at the size of the process that started this one
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            sizes = {line.split(":")[0]: line.split()[1] for line in file if line.startswith(("VmHWM:", "VmRSS:"))}
        return int(sizes["VmHWM"]) * 1024, int(sizes["VmRSS"]) * 1024
    except (OSError, KeyError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None, None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024), None


if __name__ == "__main__":
    main()
