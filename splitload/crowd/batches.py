"""Data in an .npz file as the inputs of a crowd, and its outputs as such a file.

The file has an array for each input of the model. Its first axis holds the inputs one behind the other: where the model
takes a first size of b (1 where it is open), N inputs are an array of N · b rows. Outputs are joined in the same way.
"""

from __future__ import annotations

import secrets
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.base.errors import ModelError, OutputError, SplitloadError, UsageError
from splitload.bundle.manifest import TensorSpec
from splitload.bundle.replace import check_output_file

if TYPE_CHECKING:
    import numpy as np

WHAT = "the outputs"


class Batches:
    """The inputs in a file, read as they are asked for.

    Attributes:
        count: How many there are.

    Args:
        path: The .npz file.
        specs: The model's inputs.

    Raises:
        UsageError: If it cannot be read, or does not hold what the model takes.
        ModelError: If an input of the model has no axis to split.
    """

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        arrays = _arrays(path, {spec.name for spec in specs})
        self._rows = {spec.name: _rows(spec) for spec in specs}
        self._arrays = {name: arrays[name] for name in self._rows}
        counts = {}
        for name, rows in self._rows.items():
            array = self._arrays[name]
            if not array.ndim or array.shape[0] % rows:
                shape = list(array.shape)
                raise UsageError(
                    f"'{name}' in '{path}' has the shape {shape}: its first axis must be a multiple of {rows}, the "
                    "rows that the model takes of it for one input"
                )
            counts[name] = array.shape[0] // rows
        if len(set(counts.values())) != 1:
            told = ", ".join(f"'{name}' {count}" for name, count in counts.items())
            raise UsageError(f"the arrays in '{path}' hold different numbers of inputs: {told}")
        self.count = next(iter(counts.values()))
        if self.count == 0:
            raise UsageError(f"'{path}' holds no input")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield each input, by name."""
        for place in range(self.count):
            yield {name: self._arrays[name][place * rows : (place + 1) * rows] for name, rows in self._rows.items()}


def check_output(path: Path) -> None:
    """Make sure that outputs may be written to a file, before any work is done for them.

    Raises:
        UsageError: If its name does not end with .npz.
        OutputError: If it cannot be written.
    """
    if path.suffix != ".npz":
        raise UsageError(f"-o takes a file NAME.npz, not '{path}'")
    check_output_file(path, WHAT)


def joined(outputs: Sequence[Mapping[str, Any] | SplitloadError]) -> dict[str, Any]:
    """Return outputs one behind the other along the first axis, by name; those of failed inputs are NaN, or 0.

    A bfloat16 becomes a float32.

    Args:
        outputs: What `Crowd.map` yields, at least one of them no error.

    Raises:
        ModelError: If outputs of an input have other sizes than those of another, beside the first axis.
    """
    import numpy as np

    good = next(each for each in outputs if not isinstance(each, SplitloadError))
    arrays = {}
    for name, example in good.items():
        first = _numbers(example)
        gap = np.full(first.shape, np.nan if first.dtype.kind == "f" else 0, first.dtype)
        parts = [gap if isinstance(each, SplitloadError) else _numbers(each[name]) for each in outputs]
        try:
            arrays[name] = np.stack(parts) if first.ndim == 0 else np.concatenate(parts)
        except ValueError as error:
            raise ModelError(
                f"output '{name}' has other sizes for other inputs, and cannot be joined: {error}"
            ) from error
    return arrays


def save(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write arrays as an .npz file, whole or not at all.

    Raises:
        OutputError: If it cannot be written.
    """
    import numpy as np

    made = path.with_name(f".{secrets.token_hex(4)}.npz")
    try:
        try:
            with zipfile.ZipFile(made, "w") as archive:  # numpy.savez takes no output that is called "file"
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, array, allow_pickle=False)
            made.replace(path)
        finally:
            made.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {WHAT} '{path}': {error.strerror or error}") from error


def _numbers(output: Any) -> np.ndarray[Any, Any]:
    """Return an output as an array; numpy has no bfloat16, and float32 has each of its numbers."""
    import numpy as np

    array: np.ndarray[Any, Any] = np.asarray(output)
    if getattr(output, "dtype", None) == "bfloat16":
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array


def _rows(spec: TensorSpec) -> int:
    """Return how many rows of its first axis an input takes at a time."""
    if not spec.shape:
        raise ModelError(
            f"the model's input '{spec.name}' has no first axis that is known, so that no batch can be split"
        )
    size = spec.shape[0]
    return size if isinstance(size, int) and size > 0 else 1


def _arrays(path: Path, names: set[str]) -> dict[str, Any]:
    """Return the arrays of a file that the model's inputs are.

    Raises:
        UsageError: If it cannot be read, or has others.
    """
    import numpy as np

    try:
        with path.open("rb") as opened:  # numpy takes an array of its own or a pickle as well
            if not zipfile.is_zipfile(opened):
                raise UsageError(f"'{path}' is no .npz file; numpy.savez writes one: savez(FILE, NAME=array, ...)")
        with np.load(path, allow_pickle=False) as file:
            if set(file.files) != names:
                raise UsageError(f"'{path}' has the arrays {sorted(file.files)}, the model takes {sorted(names)}")
            return {name: file[name] for name in names}
    except OSError as error:
        raise UsageError(f"cannot read '{path}': {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"cannot read '{path}' as an .npz file of numbers: {' '.join(str(error).split())}") from error
