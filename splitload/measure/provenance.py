"""Where a figure comes from: command, code, versions and machine, for records in results/."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from splitload.base.machine import available_threads, cpu_architecture, cpu_model

_PACKAGES = (
    "splitload", "numpy", "onnx", "onnxruntime", "gymnasium", "torch", "torchvision", "timm", "transformers",
    "safetensors", "openvino", "ncnn", "pnnx", "scikit-learn",
)  # fmt: skip


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """Return what a record needs to be believed.

    Args:
        command: The command line that makes the figures, without machine paths.

    `git_dirty` says whether code has changed since the commit; records in results/ are no code.
    """
    tracked = _git(
        "ls-files", "--error-unmatch", Path(__file__).name
    )  # None when installed into someone else's checkout
    commit = None if tracked is None else _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
    return {
        "command": shlex.join(command),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "git_commit": commit,
        "git_dirty": None if commit is None else bool(changes),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "cpu": cpu_architecture(),
            "cpu_model": cpu_model(),
            "threads": available_threads(),
            "memory_bytes": _memory_bytes(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Return what git says of the checkout this code runs from, or None outside one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _memory_bytes() -> int | None:
    if sys.platform.startswith("linux"):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return None
