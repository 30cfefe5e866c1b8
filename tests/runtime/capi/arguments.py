"""Gives both engines what callers may come up with, made up from a seed, and compares what each does.

Called as `arguments.py FOLDER SEED COUNT`, in a process of its own, as a fault here ends it. FOLDER holds a bundle for
each type of elements, see `test_arguments.py`. Arrays, lists and numbers have to give the same with both engines: the
same bits, or an error of the same class. What the C library takes besides has to give its elements, or one of the
errors that are documented.
"""

from __future__ import annotations

import array
import ctypes
import faulthandler
import gc
import sys
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import torch

from splitload.runtime.capi.elements import ELEMENTS
from splitload.runtime.capi.memory import memory_of
from splitload.runtime.capi.tensor import tensor_of
from splitload.runtime.loader import ParallelLoader

TYPES = [element.name for element in ELEMENTS if element.kind != "V"]
OTHERS = ["c8", "c16", "g", "M8[s]", "m8[ns]", "S3", "U2", "O", "V4", [("a", "f4"), ("b", "i2")], ml_dtypes.bfloat16]
CODES = dict(zip("bBhHiIlLqQfd", "bBhHiIlLqQfd", strict=True))
MAX_RANK = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
DOCUMENTED = (RuntimeError, ValueError, TypeError, *(
    getattr(ort.capi.onnxruntime_pybind11_state, name)
    for name in ("InvalidArgument", "Fail", "NotImplemented", "RuntimeException")  # the last without an input
))  # fmt: skip


class Subclass(np.ndarray):  # type: ignore[type-arg]
    """An array that answers to more names than arrays do."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class Interface:
    """What has an array interface and nothing else; some of its keys may lie or lack."""

    def __init__(self, values: Any, changes: dict[str, Any]) -> None:
        self._values = values
        entries = {**values.__array_interface__, **changes}
        self.__array_interface__ = {key: value for key, value in entries.items() if value != "lacks"}


class Packed:
    """What has DLPack and nothing else."""

    def __init__(self, values: Any, device: Any = (1, 0), gives: Any = None) -> None:
        self._values, self._device, self._gives = values, device, gives

    def __dlpack_device__(self) -> Any:
        return self._device

    def __dlpack__(self) -> Any:
        return self._values.__dlpack__() if self._gives is None else self._gives


class Maker:
    """Makes things up.

    Args:
        seed: Of what is random.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def one_of(self, *choices: Any) -> Any:
        """Return one of some choices."""
        return choices[self._rng.integers(len(choices))]

    def is_so(self, probability: float) -> bool:
        """Return True as often as that."""
        return bool(self._rng.random() < probability)

    def shape(self) -> tuple[int, ...]:
        """Return a small shape, of a rank that may be as large as can be."""
        rank = int(self.one_of(0, 1, 1, 2, 2, 2, 3, 4, 6, MAX_RANK))
        sizes = self._rng.integers(0, 4, rank) if rank <= 6 else np.ones(rank, int)
        return tuple(int(size) for size in sizes)

    def values(self, dtype: Any) -> Any:
        """Return an array in one of the ways in which arrays lie in memory."""
        shape = self.shape()
        made = (self._rng.integers(0, 2, shape)).astype("O" if np.dtype(dtype).kind in "V" else dtype)
        made = np.zeros(shape, dtype) if np.dtype(dtype).kind == "V" and dtype is not ml_dtypes.bfloat16 else made
        made = np.asarray(made).astype(dtype)
        for change in self._rng.choice(["order", "step", "zero", "swap", "frozen", "shift", "kind", "flip"], 2):
            made = self._changed(made, str(change))
        return made

    def _changed(self, made: Any, change: str) -> Any:
        if change == "order":
            return np.asfortranarray(made)
        if change == "step" and made.ndim:
            return made[::-1]
        if change == "flip":
            return made.T
        if change == "zero" and made.ndim and made.size:
            return np.broadcast_to(made[:1], (3, *made.shape[1:]))
        if change == "swap" and made.dtype.kind in "iufc" and made.itemsize > 1:
            return made.astype(made.dtype.newbyteorder())
        if change == "frozen":
            made = made.copy()
            made.setflags(write=False)
        if change == "shift" and made.dtype.kind in "iufb":
            raw = np.zeros(made.nbytes + 1, np.uint8)
            raw[1:] = np.frombuffer(made.tobytes(), np.uint8)
            return raw[1:].view(made.dtype).reshape(made.shape)
        if change == "kind" and made.dtype.kind in "iufb" and type(made) is np.ndarray:
            view = self.one_of(Subclass, np.ma.MaskedArray, np.recarray)
            return made.view(view)
        return made

    def number(self) -> Any:
        """Return what is no array, and means the same to both engines."""
        scalar = self.one_of(np.datetime64(1, "s"), *(np.dtype(dtype).type(1) for dtype in (*TYPES, "c8")))
        return self.one_of(
            scalar, 1, 1.5, True, "a", 1 << 70, {}, set(), object(), [], [[]], [1, 2], [1.5], [[1, 0], [1, 1]],
            [[1], [1, 2]], [None], ["a"], [1 << 70], [-1], [np.float32(1)], [np.ones(2)], ..., range(3), (1, 2), int,
        )  # fmt: skip

    def strange(self, dtype: str) -> Any:
        """Return what only the C library may take, with an array of its elements, or None where it must refuse."""
        values = np.ascontiguousarray(self._rng.integers(0, 2, self.shape()).astype(dtype))
        kind = self.one_of("view", "bytes", "array", "ctypes", "interface", "lies", "packed", "torch", "tensor", "ort")
        if kind == "view":
            made = self.values(dtype)
            return memoryview(made), made if made.dtype.isnative else None
        if kind == "bytes":
            return self.one_of(bytes, bytearray)(values.tobytes()), np.frombuffer(values.tobytes(), np.uint8)
        if kind == "array":
            code = self.one_of(*CODES)
            made = array.array(code, [1, 0, 1])
            return made, np.asarray(made)
        if kind == "ctypes":
            made = np.ctypeslib.as_ctypes(values) if values.ndim and values.dtype != np.float16 else ctypes.c_int32(1)
            return made, np.asarray(made)
        if kind == "interface":
            return Interface(values, {}), values
        if kind == "lies":
            return self.lie(values), None
        if kind == "packed":
            return Packed(values), values
        if kind == "torch":
            return self.torch(values)
        if kind == "tensor":
            return tensor_of(memory_of(values)), values
        return ort.OrtValue.ortvalue_from_numpy(values), values

    def lie(self, values: Any) -> Any:
        """Return what says of itself what cannot be."""
        values = values if values.size else np.ones((2, 3), values.dtype)
        changes: dict[str, Any] = self.one_of(
            {"data": (0, False)}, {"data": None}, {"data": "lacks"}, {"data": ("1", False)}, {"data": (-1, False)},
            {"shape": (-1,)}, {"shape": (1 << 64,)}, {"shape": (1 << 62, 1 << 62)}, {"shape": 3}, {"shape": "lacks"},
            {"shape": ("2", 3)}, {"strides": (1, 2, 3)}, {"strides": 4, "shape": (2,)}, {"typestr": "lacks"},
            {"typestr": ">f8"}, {"typestr": "|O8"}, {"typestr": 4}, {"typestr": "<f99999999999"}, {"mask": [True]},
        )  # fmt: skip
        return self.one_of(
            None,  # the Python module hands it to the model, which then fails
            Interface(values, changes),
            Packed(values, (2, 0)), Packed(values, None), Packed(values, ("cpu", 0)), Packed(values, gives="capsule"),
            Packed(values, gives=values), Packed(np.zeros(2, "c8")), Packed(torch.ones(2, 3).t()),
        )  # fmt: skip

    def torch(self, values: Any) -> Any:
        """Return a tensor of torch's, with an array of its elements where it can be read."""
        made = torch.from_numpy(values.copy()) if values.ndim <= 32 else torch.ones(2)
        same = made.numpy()
        if made.is_floating_point() and self.is_so(0.3):
            return self.one_of(made.requires_grad_(), made.double().to_sparse(), made.to("meta")), None
        if self.is_so(0.3):
            made = made.to(torch.bfloat16)
            return made, made.view(torch.uint16).numpy()
        return made, same

    def drawn(self) -> tuple[str, Any, Any, bool]:
        """Return a type of elements, what to give for it, its elements, and whether both engines know it."""
        if self.is_so(0.1):
            return self.one_of(*TYPES), self.number(), None, True
        dtype = self.one_of(*TYPES)
        if self.is_so(0.4):
            given, elements = self.strange(dtype)
            known = dtype if elements is None or elements.dtype.name not in TYPES else elements.dtype.name
            return known, given, elements, False
        made = self.values(self.one_of(*OTHERS) if self.is_so(0.2) else dtype)
        return dtype, made, None, made.dtype != ml_dtypes.bfloat16  # which the Python module does not know


def outcome(model: ParallelLoader, given: Any) -> Any:
    """Return the outputs as bytes, or the class of the error."""
    try:
        (answer,) = model.run(None, {"x": given})
    except Exception as error:
        return type(error)
    return answer.dtype.name, answer.shape, answer.tobytes()


def fault(library: ParallelLoader, python: ParallelLoader, given: Any, elements: Any, is_known: bool) -> str | None:
    """Return what is wrong with what an engine does, or None."""
    found = outcome(library, given)
    if is_known:
        wanted = outcome(python, given)
        return None if found == wanted else f"{found}, and the Python module gives {wanted}"
    if isinstance(found, type):
        return None if issubclass(found, DOCUMENTED) and str(found) else f"{found} is not documented"
    if elements is None:
        return f"{found} of what cannot be read"
    flat = np.ascontiguousarray(elements).reshape(-1)
    return None if found[2] == flat.tobytes() else f"{found}, and the elements are {flat!r}"


def main() -> None:
    """Do what the arguments say; print the faults."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    models = {
        name: [ParallelLoader(folder / name, engine=engine) for engine in ("library", "python")]  # type: ignore[arg-type]
        for name in TYPES
    }
    faults = 0
    for turn in range(count):
        dtype, given, elements, is_known = Maker(seed * 1_000_000 + turn).drawn()
        told = fault(models[dtype][0], models[dtype][1], given, elements, is_known)
        if told is not None:
            faults += 1
            what = getattr(given, "__array_interface__", None) if isinstance(given, Interface | np.ndarray) else given
            sys.stdout.write(f"turn {turn}, {dtype}: {type(given).__name__} {what!r}: {told}\n"[:600])
        if turn % 50 == 0:
            gc.collect()
    sys.stdout.write(f"{faults} faults of {count}\n")


if __name__ == "__main__":
    main()
