"""What this machine is: the processor as compiled graphs see it, and the threads this process may use."""

from __future__ import annotations

import os

from splitload.base.kept import kept

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MODALIAS = "/sys/devices/system/cpu/modalias"  # Linux
_PROCESSORS = "/sys/devices/system/cpu"  # Linux
# Source: the numbers of X86_FEATURE_* in Linux's arch/x86/include/asm/cpufeatures.h, 32 x word + bit
_FEATURES = {"avx512f": f"{32 * 9 + 16:04X}", "avx2": f"{32 * 9 + 5:04X}", "avx": f"{32 * 4 + 28:04X}"}
_CPUINFO_BYTES = 8192  # the first processor's entry; all of the file takes milliseconds on large servers


@kept
def cpu_architecture() -> str:
    """Return the processor family and its vector level, for example "x86_64+avx2".

    onnxruntime blocks convolution weights by the vector width, so that a graph optimised on one level is wrong on
    another.
    """
    machine = _machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    flags: set[str] = set()
    if machine == "x86_64":
        try:  # a quarter of the time that /proc/cpuinfo takes
            features = _text(_MODALIAS).split(",")
        except OSError:
            pass
        else:
            level = next((flag for flag, number in _FEATURES.items() if number in features), "")
            return f"{machine}+{level}" if level else machine
    try:
        flags.update(_cpuinfo("flags", "Features").split())
    except OSError:  # macOS, Windows: there the processor's name stands in for its level
        return f"{machine}+{_processor()}" if machine.startswith("x86") else machine
    level = next((flag for flag in ("avx512f", "avx2", "avx") if flag in flags), "")
    return f"{machine}+{level}" if level else machine


@kept
def cpu_model() -> str:
    """Return the processor's name as the system gives it."""
    try:
        if name := _cpuinfo("model name", "Model", "Hardware").strip():
            return name
    except OSError:
        pass
    return _processor() or _machine()


def _cpuinfo(*begins: str) -> str:
    """Return what the first line says that begins with one of some words; "" if there is none."""
    lines = _text("/proc/cpuinfo", _CPUINFO_BYTES).splitlines()
    return next((line.partition(":")[2] for line in lines if line.startswith(begins)), "")


def _text(path: str, size: int = -1) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(size)


def _machine() -> str:
    return os.uname().machine if hasattr(os, "uname") else str(_platform().machine())


def _processor() -> str:
    return str(_platform().processor())


def _platform() -> Any:
    import platform  # takes as long to import as a canary to run

    return platform


def available_threads() -> int:
    """Return how many processors this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def inference_threads() -> int:
    """Return how many cores this process may run on, at least 1; 0 where the system does not tell (Linux does).

    That is what onnxruntime takes when it is not told. But only then does it tie each of its threads to a processor.
    """
    if not hasattr(os, "sched_getaffinity"):
        return 0
    cores = {_core(processor) for processor in os.sched_getaffinity(0)}
    return 0 if "" in cores else len(cores)


@kept
def _core(processor: int) -> str:
    """Return the processors that share a core with this one, as Linux writes it; "" where the system does not tell."""
    try:
        return _text(os.path.join(_PROCESSORS, f"cpu{processor}/topology/thread_siblings_list")).strip()
    except OSError:
        return ""


def return_memory() -> None:
    """Give what was freed back to the system, where the C library keeps it otherwise (glibc)."""
    try:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, OSError, AttributeError, TypeError):
        pass
