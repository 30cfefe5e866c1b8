"""The arm `c` of the study of whole processes: a program in C, compiled against the library that splitload opens."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from splitload.base.errors import StageError, UsageError
from splitload.base.machine import inference_threads
from splitload.bundle.manifest import Manifest, StageEntry, Variant
from splitload.runtime.capi.elements import BY_TYPE
from splitload.runtime.capi.find import NoLibraryError, beside_module
from splitload.runtime.capi.table import API_VERSION, FUNCTIONS
from splitload.runtime.settings import DISABLE_ALL, ENABLE_ALL, SPINNING, file_entries

SOURCE = Path(__file__).with_suffix(".c")
HEADER = "onnxruntime_c_api.h"
# Of the functions that the program calls; those in the first table return a status.
_RETURN_STATUS = {
    "AddSessionConfigEntry": "OrtSessionOptions *, const char *, const char *",
    "CreateCpuMemoryInfo": "int, int, OrtMemoryInfo **",
    "CreateEnv": "OrtLoggingLevel, const char *, OrtEnv **",
    "CreateSession": "const OrtEnv *, const char *, const OrtSessionOptions *, OrtSession **",
    "CreateSessionOptions": "OrtSessionOptions **",
    "CreateTensorWithDataAsOrtValue": (
        "const OrtMemoryInfo *, void *, size_t, const int64_t *, size_t, ONNXTensorElementDataType, OrtValue **"
    ),
    "DisableMemPattern": "OrtSessionOptions *",
    "GetTensorMutableData": "OrtValue *, void **",
    "GetTensorShapeElementCount": "const OrtTensorTypeAndShapeInfo *, size_t *",
    "GetTensorTypeAndShape": "const OrtValue *, OrtTensorTypeAndShapeInfo **",
    "Run": (
        "OrtSession *, const OrtRunOptions *, const char *const *, const OrtValue *const *, size_t, "
        "const char *const *, size_t, OrtValue **"
    ),
    "SetIntraOpNumThreads": "OrtSessionOptions *, int",
    "SetSessionGraphOptimizationLevel": "OrtSessionOptions *, GraphOptimizationLevel",
    "SetSessionLogSeverityLevel": "OrtSessionOptions *, int",
}
_OPAQUE = (
    "Env", "MemoryInfo", "RunOptions", "Session", "SessionOptions", "Status", "TensorTypeAndShapeInfo", "Value"
)  # fmt: skip
_OTHERS = {f"Release{name}": f"void (*Release{name})(Ort{name} *)" for name in _OPAQUE} | {
    "GetErrorMessage": "const char *(*GetErrorMessage)(const OrtStatus *)"
}


def header() -> str:
    """Return what the program needs of onnxruntime's own header: types, and the table with its functions."""

    def member(name: str) -> str:
        if name in _RETURN_STATUS:
            return f"OrtStatus *(*{name})({_RETURN_STATUS[name]})"
        return _OTHERS.get(name, f"void (*{name})(void)")

    return "\n".join(
        [
            "#include <stddef.h>",
            "#include <stdint.h>",
            f"#define ORT_API_VERSION {API_VERSION}",
            "enum { OrtDeviceAllocator = 0, OrtMemTypeDefault = 0 };",
            "typedef int OrtLoggingLevel, GraphOptimizationLevel, ONNXTensorElementDataType;",
            *(f"typedef struct Ort{name} Ort{name};" for name in _OPAQUE),
            "typedef struct {",
            *(f"    {member(name)};" for name in FUNCTIONS),
            "} OrtApi;",
            "typedef struct { const OrtApi *(*GetApi)(uint32_t); const char *(*GetVersionString)(void); } OrtApiBase;",
            "const OrtApiBase *OrtGetApiBase(void);",
            "",
        ]
    )


def model_header(
    bundle: Path, manifest: Manifest, variant: Variant, inputs: Mapping[str, tuple[Path, Sequence[int]]]
) -> str:
    """Return the header that says what the program opens, and how.

    Args:
        bundle: The bundle.
        manifest: What it says.
        variant: The variant that runs here.
        inputs: By name of an input, the file with its bytes, and its shape.

    Raises:
        UsageError: If the first output is not of float32.
    """
    output, stages = manifest.outputs[0], variant.stages
    if output.type != "tensor(float)":
        raise UsageError(f"the program in C prints float32, and '{output.name}' is a {output.type}")
    types = {spec.name: BY_TYPE[spec.type].number for spec in manifest.inputs}
    given = [
        _braces([_text(name), _text(file), str(types[name]), str(len(shape)), _braces(map(str, shape))])
        for name, (file, shape) in inputs.items()
    ]
    most = [len(shape) for _, shape in inputs.values()]
    for stage in stages:
        most += [len(stage.inputs), len(stage.outputs), len(_entries(stage))]
    return (
        f"#define THREADS {inference_threads()}\n#define MOST {max(most)}\n#define OUTPUT {_text(output.name)}\n"
        f"#define INPUTS {', '.join(given)}\n#define STAGES {', '.join(_stage(bundle, each) for each in stages)}\n"
    )


def compiled(folder: Path, model: str, given_header: Path | None) -> Path:
    """Return the program, compiled into a folder.

    Args:
        folder: An empty folder.
        model: The text of `model.h`.
        given_header: onnxruntime's own header; None for the one that `header` gives.

    Raises:
        UsageError: If there is no C compiler, or no C library beside onnxruntime's Python module.
        StageError: If it does not compile.
    """
    if shutil.which("cc") is None:
        raise UsageError("the arm 'c' needs a C compiler, and there is no 'cc'")
    try:
        library = beside_module()
    except NoLibraryError as error:
        raise UsageError(f"the arm 'c' needs onnxruntime's C library: {error}") from error
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # as the linker looks for it, and the loader
        (folder / name).symlink_to(library)
    (folder / "model.h").write_text(model, encoding="utf-8")
    if given_header is None:
        (folder / HEADER).write_text(header(), encoding="utf-8")
    place = folder if given_header is None else given_header.absolute().parent
    program = folder / "baseline"
    words = ["-std=gnu11", "-O2", "-I", str(folder), "-I", str(place), str(SOURCE), "-o", str(program)]
    link = ["-L", str(folder), "-lonnxruntime", f"-Wl,-rpath,{folder}"]
    done = subprocess.run(["cc", *words, *link], capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [f"cc ended with {done.returncode}"]
        raise StageError(f"the arm 'c' does not compile: {lines[0][:300]}")
    return program


def _stage(bundle: Path, stage: StageEntry) -> str:
    """Return a stage as the program has it: opened as the loader does for the first answer."""
    outputs, entries = [spec.name for spec in stage.outputs], _entries(stage)
    return _braces(
        [
            _text(bundle / stage.graph.name),
            str(ENABLE_ALL if stage.optimizes(stage.prepack) else DISABLE_ALL),
            *(str(len(each)) for each in (stage.inputs, outputs, entries)),
            _braces(map(_text, stage.inputs)),
            _braces(map(_text, outputs)),
            _braces(_braces(map(_text, entry)) for entry in entries.items()),
        ]
    )


def _entries(stage: StageEntry) -> dict[str, str]:
    """Return the configuration entries of a stage's first session."""
    return SPINNING | file_entries(stage.graph.name, prepack=stage.prepack, mapped=stage.mapped)


def _braces(words: Iterable[str]) -> str:
    return f"{{{', '.join(words)}}}"


def _text(value: str | Path) -> str:
    """Return a literal of C, which holds the bytes that the system has for a path or UTF-8 has for a name."""
    raw = os.fsencode(value) if isinstance(value, Path) else value.encode()
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}" for byte in raw)
    return f'"{"".join(plain)}"'
