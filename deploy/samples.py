"""Samples to personalize with: an .npz file, checked against the model before anything runs."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splitload.errors import UsageError
from splitload.inputs import DTYPES
from splitload.manifest import Manifest, TensorSpec

TARGET = "y"
MAX_DATA_BYTES = 16 << 30
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What is trained on, or judged by.

    Attributes:
        inputs: An array for each input of the model, of shape `(samples, …)`, by name.
        target: Classes, int64 of shape `(samples,)`, or outputs, float32 of shape `(samples, …)`.
        loss: "cross-entropy" or "mse".
        takes_many: Whether the frozen stages take several samples at once.
    """

    inputs: dict[str, Array]
    target: Array
    loss: str
    takes_many: bool

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.target)


def read_samples(path: Path, manifest: Manifest, loss: str | None) -> Samples:
    """Read an .npz file.

    Args:
        path: The file.
        manifest: Of the bundle that is personalized.
        loss: "cross-entropy", "mse", or None for the one that the target means.

    Raises:
        UsageError: If it cannot be read, or does not fit the model: what is missing, of another shape or type, out of
            range or not finite is named.
    """
    arrays = _read(path)
    names = [spec.name for spec in manifest.inputs]
    if len(names) == 1 and names[0] not in arrays and "x" in arrays:
        arrays[names[0]] = arrays.pop("x")
    missing = [name for name in (*names, TARGET) if name not in arrays]
    if missing:
        raise UsageError(f"'{path}' has no array '{missing[0]}'; it needs {[*names, TARGET]} and has {sorted(arrays)}")
    target = arrays.pop(TARGET)
    if extra := sorted(set(arrays) - set(names)):
        raise UsageError(f"'{path}' has arrays that the model does not take: {extra}; it takes {names} and '{TARGET}'")
    if scalar := [spec.name for spec in manifest.inputs if spec.shape == ()]:
        raise UsageError(f"the model's input '{scalar[0]}' is a number, and has no samples; it cannot be personalized")
    inputs = {spec.name: _fitting(path, spec, arrays[spec.name]) for spec in manifest.inputs}
    counts = {name: len(value) for name, value in inputs.items()} | {TARGET: len(target) if target.ndim else 0}
    if len(set(counts.values())) > 1 or not min(counts.values()):
        raise UsageError(f"'{path}' must have one entry of each array for each sample, at least one; it has {counts}")
    loss = loss or ("cross-entropy" if target.dtype.kind in "iu" else "mse")
    if loss not in ("cross-entropy", "mse"):
        raise UsageError(f"the loss is 'cross-entropy' or 'mse', not '{loss}'")
    assert manifest.training is not None  # noqa: S101 - who calls has checked
    output = next(spec for spec in manifest.outputs if spec.name == manifest.training.output)
    target = _classes(path, output, target) if loss == "cross-entropy" else _outputs(path, output, target)
    takes_many = all(not spec.shape or not isinstance(spec.shape[0], int) for spec in manifest.inputs)
    return Samples(inputs, target, loss, takes_many)


def _read(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_DATA_BYTES:
            raise UsageError(f"'{path}' holds {size >> 30} GiB of data, at most {MAX_DATA_BYTES >> 30} are taken")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"cannot read '{path}': {error.strerror or error}") from error
    except Exception as error:  # a damaged archive shows in many ways, down to a MemoryError
        raise UsageError(f"'{path}' is no .npz file of arrays: {' '.join(str(error).split())[:200]}") from error
    if other := [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]:
        raise UsageError(f"'{path}' is no .npz file of arrays: '{other[0]}' in it is none")
    return arrays


def _fitting(path: Path, spec: TensorSpec, value: Array) -> Array:
    """Return the values of an input in its own type."""
    wanted = DTYPES.get(spec.type)
    shape = spec.shape or ()
    rest = value.shape[1:]
    same = value.ndim == len(shape) and all(
        not isinstance(size, int) or size == given for size, given in zip(shape[1:], rest, strict=True)
    )
    if wanted is None or not same or (shape and isinstance(shape[0], int) and shape[0] != 1):
        samples = ["samples", *shape[1:]]
        raise UsageError(
            f"'{path}': '{spec.name}' must be a {spec.type} of shape {samples}, it has {list(value.shape)}"
        )
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise UsageError(f"'{path}': '{spec.name}' holds values that are not finite")
    if not np.can_cast(value.dtype, wanted, "same_kind"):
        raise UsageError(f"'{path}': '{spec.name}' must be a {spec.type}, it is of type {value.dtype}")
    return value.astype(wanted, copy=False)


def _classes(path: Path, output: TensorSpec, target: Array) -> Array:
    if output.shape is None or len(output.shape) != 2:
        raise UsageError(
            f"'{path}': classes need an output of shape ['samples', 'classes'], that of the model is "
            f"{None if output.shape is None else list(output.shape)}; give outputs as '{TARGET}', and --loss mse"
        )
    classes = output.shape[1]
    if target.dtype.kind not in "iu" or target.ndim != 1:
        raise UsageError(
            f"'{path}': '{TARGET}' must hold a class for each sample, whole numbers of shape ['samples']; it is of "
            f"type {target.dtype} and shape {list(target.shape)} (--loss mse takes outputs)"
        )
    low, high = int(target.min()), int(target.max())
    if low < 0 or (isinstance(classes, int) and high >= classes):
        most = f"to {classes - 1}" if isinstance(classes, int) else "on"
        raise UsageError(f"'{path}': classes must be from 0 {most}; there are {low} to {high}")
    return target.astype(np.int64)


def _outputs(path: Path, output: TensorSpec, target: Array) -> Array:
    shape = output.shape or ()
    same = target.ndim == len(shape) and all(
        not isinstance(size, int) or size == given for size, given in zip(shape[1:], target.shape[1:], strict=True)
    )
    if target.dtype.kind not in "fiu" or not same or not np.isfinite(target).all():
        raise UsageError(
            f"'{path}': '{TARGET}' must hold finite outputs of shape {['samples', *shape[1:]]}; it is of type "
            f"{target.dtype} and shape {list(target.shape)}"
        )
    return target.astype(np.float32)
