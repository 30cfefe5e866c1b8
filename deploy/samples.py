"""Samples to personalize with: an .npz file, checked against the model before anything runs."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.errors import UsageError
from splitload.bundle.manifest import LOSSES, Loss, Manifest, TensorSpec
from splitload.deploy.arguments import TARGET
from splitload.runtime.inputs import DTYPES

MAX_DATA_BYTES = 16 << 30
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What is trained on, or judged by.

    Attributes:
        inputs: An array for each input of the model, of shape `(samples, …)`, by name.
        target: Classes, int64 of shape `(samples,)`, or outputs, float32 of shape `(samples, …)`.
        loss: Which one is taken.
        takes_many: Whether the frozen stages take several samples at once.
    """

    inputs: dict[str, Array]
    target: Array
    loss: Loss
    takes_many: bool

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.target)


def read_samples(path: Path, manifest: Manifest, loss: str | None, labels: str = TARGET) -> Samples:
    """Read an .npz file.

    Args:
        path: The file.
        manifest: Of the bundle that is personalized.
        loss: One of the losses, or None for the one that target and output mean.
        labels: What the array of targets is called.

    Raises:
        UsageError: If it cannot be read, or does not fit the model: what is missing, of another shape or type, out of
            range or not finite is named.
    """
    arrays = _read(path)
    names = [spec.name for spec in manifest.inputs]
    if labels in names and (len(names) > 1 or "x" not in arrays or labels == "x"):
        raise UsageError(
            f"the model has an input '{labels}', which is what labels are called too: give them another name in "
            f"'{path}', and say it with --labels NAME"
        )
    target = arrays.pop(labels, None)
    if len(names) == 1 and names[0] not in arrays and "x" in arrays:
        arrays[names[0]] = arrays.pop("x")
    missing = [name for name in names if name not in arrays] + [labels] * (target is None)
    if missing or target is None:
        there = sorted([*arrays, *[labels] * (target is not None)])
        raise UsageError(f"'{path}' has no array '{missing[0]}'; it needs {[*names, labels]} and has {there}")
    if extra := sorted(set(arrays) - set(names)):
        raise UsageError(f"'{path}' has arrays that the model does not take: {extra}; it takes {names} and '{labels}'")
    if scalar := [spec.name for spec in manifest.inputs if spec.shape == ()]:
        raise UsageError(f"the model's input '{scalar[0]}' is a number, and has no samples; it cannot be personalized")
    inputs = {spec.name: _fitting(path, spec, arrays[spec.name]) for spec in manifest.inputs}
    counts = {name: len(value) for name, value in inputs.items()}
    counts |= {f"{labels} (labels)" if labels in counts else labels: len(target) if target.ndim else 0}
    if len(set(counts.values())) > 1 or not min(counts.values()):
        raise UsageError(f"'{path}' must have one entry of each array for each sample, at least one; it has {counts}")
    assert manifest.training is not None  # noqa: S101 - who calls has checked
    output = next(spec for spec in manifest.outputs if spec.name == manifest.training.output)
    if loss is None:
        loss = _meant(path, output, target, labels)
    if loss not in LOSSES:
        raise UsageError(f"the loss is one of {', '.join(LOSSES)}, not '{loss}'")
    fit = _outputs if loss == "mse" else _classes if loss == "cross-entropy" else _two_classes
    takes_many = all(not spec.shape or not isinstance(spec.shape[0], int) for spec in manifest.inputs)
    return Samples(inputs, fit(path, output, target, labels), loss, takes_many)


def _meant(path: Path, output: TensorSpec, target: Array, labels: str) -> Loss:
    """Return the loss that labels mean for an output.

    Raises:
        UsageError: If they may be classes or wanted outputs.
    """
    one_unit = _is_one_unit(output)
    of_classes: Loss = "binary-cross-entropy" if one_unit else "cross-entropy"
    if target.dtype.kind in "biu":
        return of_classes
    a_sample = target.ndim == 1 or (one_unit and target.shape[1:] == (1,))
    if not a_sample or not _is_whole(target) or (one_unit and not np.isin(target, (0, 1)).all()):
        return "mse"
    if not _has_shape(output, target):
        return of_classes
    raise UsageError(
        f"'{path}': '{labels}' holds 0 and 1 as {target.dtype}, which may be classes or wanted outputs; give --loss "
        "binary-cross-entropy or --loss mse"
    )


def _is_one_unit(output: TensorSpec) -> bool:
    return output.shape is not None and (len(output.shape) == 1 or list(output.shape[1:]) == [1])


def _is_whole(target: Array) -> bool:
    """Return whether all values are whole numbers, of whatever type, that an int64 holds."""
    if target.dtype.kind != "f":
        return target.dtype.kind in "biu"
    wide = target.astype(np.float64)
    return bool((np.abs(wide) < 2**63).all() and (wide == np.rint(wide)).all())


def _has_shape(output: TensorSpec, target: Array) -> bool:
    """Return whether there is a value for each one of an output."""
    shape = output.shape or ()
    return target.ndim == len(shape) and all(
        not isinstance(size, int) or size == given for size, given in zip(shape[1:], target.shape[1:], strict=True)
    )


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
        told = " ".join(str(error).split())[:200]
        if "pickle" in told:  # numpy advises to trust the file
            told = "it is another kind of file, or holds Python objects; numpy.savez writes arrays of numbers or text"
        raise UsageError(f"'{path}' is no .npz file of arrays: {told}") from error
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
    return _cast(path, spec.name, value, np.dtype(wanted))


def _cast(path: Path, name: str, value: Array, wanted: np.dtype[Any]) -> Array:
    """Return an array in another type that holds all its values.

    Raises:
        UsageError: If a number is too large or too small for it.
    """
    if value.dtype.kind in "iu" and wanted.kind in "iu" and value.size:
        limits = np.iinfo(wanted)
        low, high = int(value.min()), int(value.max())
        if low < limits.min or high > limits.max:
            raise UsageError(
                f"'{path}': '{name}' has values from {low} to {high}; {wanted} holds {limits.min} to {limits.max}"
            )
    with np.errstate(over="ignore"):
        made = value.astype(wanted, copy=False)
    if wanted.kind == "f" and not np.isfinite(made).all():
        worst = value[~np.isfinite(made)].ravel()[0]
        raise UsageError(f"'{path}': '{name}' holds {worst:g}; {wanted} holds at most {np.finfo(wanted).max:g}")
    return made


def _classes(path: Path, output: TensorSpec, target: Array, labels: str) -> Array:
    if output.shape is None or len(output.shape) != 2:
        raise UsageError(
            f"'{path}': classes need an output of shape ['samples', 'classes'], that of the model is "
            f"{None if output.shape is None else list(output.shape)}; give outputs as '{labels}', and --loss mse"
        )
    return _whole(path, target, labels, output.shape[1])


def _two_classes(path: Path, output: TensorSpec, target: Array, labels: str) -> Array:
    if not _is_one_unit(output):
        raise UsageError(
            f"'{path}': binary-cross-entropy needs an output of one unit, that of the model has the shape "
            f"{None if output.shape is None else list(output.shape)}; give --loss cross-entropy or mse"
        )
    return _whole(path, target[:, 0] if target.shape[1:] == (1,) else target, labels, 2)


def _whole(path: Path, target: Array, labels: str, classes: int | str | None) -> Array:
    """Return a class for each sample, of so many if that is known."""
    if target.ndim != 1 or not _is_whole(target):
        raise UsageError(
            f"'{path}': '{labels}' must hold a class for each sample, whole numbers of shape ['samples']; it is of "
            f"type {target.dtype} and shape {list(target.shape)} (--loss mse takes outputs)"
        )
    target = target if target.dtype.kind in "iu" else target.astype(np.int64)
    low, high = int(target.min()), int(target.max())
    if low < 0 or (isinstance(classes, int) and high >= classes):
        most = f"to {classes - 1}" if isinstance(classes, int) else "on"
        raise UsageError(
            f"'{path}': classes must be from 0 {most}; there are {low} to {high} (--loss mse takes outputs)"
        )
    return _cast(path, labels, target, np.dtype(np.int64))


def _outputs(path: Path, output: TensorSpec, target: Array, labels: str) -> Array:
    shape = ["samples", *(output.shape or ())[1:]]
    if target.dtype.kind not in "bfiu" or not _has_shape(output, target) or not np.isfinite(target).all():
        raise UsageError(
            f"'{path}': '{labels}' must hold finite outputs of shape {shape}; it is of type {target.dtype} "
            f"and shape {list(target.shape)}"
        )
    return _cast(path, labels, target, np.dtype(np.float32))
