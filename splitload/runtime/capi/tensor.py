"""A tensor without numpy: what `ParallelLoader(…, arrays="buffers")` gives, and whatever reads arrays takes."""

from __future__ import annotations

import ctypes
import sys

from splitload.base.kept import kept
from splitload.runtime.capi.elements import BY_KIND, Element
from splitload.runtime.capi.memory import DLTensor, Memory, capsule_pointer, memory_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_CPU = (1, 0)  # DLPack's device type and number of the processor
_NUMBERS: dict[str, Any] = {
    "f": ctypes.c_float, "d": ctypes.c_double, "?": ctypes.c_bool, "b": ctypes.c_int8, "B": ctypes.c_uint8,
    "h": ctypes.c_int16, "H": ctypes.c_uint16, "i": ctypes.c_int32, "I": ctypes.c_uint32, "q": ctypes.c_int64,
    "Q": ctypes.c_uint64,
}  # fmt: skip


class Tensor:
    """An output of a model: numbers in C order, in memory that lives as long as this does.

    `memoryview(tensor)`, `numpy.asarray(tensor)` and `torch.from_dlpack(tensor)` read it without copying. Python's
    buffers have no bfloat16, and those of Python 3.11 no float16: such tensors have `__array_interface__` and DLPack.

    Attributes:
        shape: Its sizes.
        dtype: The name of the type of its elements, such as "float32".
    """

    _memory: Memory

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return self._memory.shape

    @property
    def dtype(self) -> str:
        """The name of the type of its elements, as numpy says it."""
        return self._memory.element.name

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self._memory.nbytes

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """See numpy's array interface, version 3; a bfloat16 is two bytes there."""
        memory = self._memory
        return {
            "version": 3, "shape": memory.shape, "typestr": memory.element.typestr, "data": (memory.address, False),
            "strides": None,
        }  # fmt: skip

    def tobytes(self) -> bytes:
        """Return the elements as bytes, in C order."""
        return bytes(bytes_of(self._memory))

    def tolist(self) -> Any:
        """Return the elements as numbers in nested lists; of a tensor without dimensions the number."""
        return _nested(iter(self.numbers()), self.shape)

    def numbers(self) -> tuple[Any, ...]:
        """Return the elements as numbers, in C order."""
        import struct

        element, raw = self._memory.element, self.tobytes()
        count = len(raw) // element.item_bytes
        if element.format:
            return struct.unpack(f"={count}{element.format}", raw)
        # a bfloat16 is the upper half of a float32
        wide = [half << 16 for half in struct.unpack(f"={count}H", raw)]
        return struct.unpack(f"={count}f", struct.pack(f"={count}I", *wide))

    def __repr__(self) -> str:
        return f"Tensor(shape={self.shape}, dtype={self.dtype!r})"

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the processor."""
        return _CPU

    def __dlpack__(self, **wishes: Any) -> Any:
        """Return a capsule for `from_dlpack` of another library; this tensor lives as long as what is made of it.

        The capsule is numpy's: what it does when it goes has to be machine code, as an error may be on its way then.

        Args:
            wishes: What the array API knows, such as `copy`.

        Raises:
            BufferError: If numpy is not installed, or cannot do what is wished.
        """
        try:
            import numpy as np
        except ImportError as error:
            raise BufferError("DLPack needs numpy: 'pip install numpy'; the buffer of a tensor does not") from error
        if self.dtype != "bfloat16":
            return np.asarray(self).__dlpack__(**wishes)
        wishes.pop("max_version", None)  # the structure of the first version is known here
        capsule = np.asarray(self).view(np.uint16).__dlpack__(**wishes)
        DLTensor.from_address(capsule_pointer(capsule, b"dltensor")).code = self._memory.element.dlpack_code
        return capsule


def in_form(answer: Any, arrays: str) -> Any:
    """Return an output in the form that is asked for.

    Args:
        answer: A tensor, an array, or what is neither and stays as it is.
        arrays: "numpy" or "buffers".

    Raises:
        RuntimeError: If numpy has no type for it, as of onnxruntime's `run`.
    """
    if arrays == "buffers":
        is_array = type(answer).__module__ == "numpy" and BY_KIND.get((answer.dtype.kind, answer.dtype.itemsize))
        return tensor_of(memory_of(answer)) if is_array else answer
    if not isinstance(answer, Tensor):
        return answer
    import numpy as np

    if answer.dtype == "bfloat16":
        raise RuntimeError('numpy has no type for bfloat16; ParallelLoader(…, arrays="buffers") gives it')
    return np.array(answer, np.dtype(answer.dtype))  # a view would have ctypes' byte order written out in its dtype


def _nested(numbers: Iterator[Any], shape: tuple[int, ...]) -> Any:
    """Return the next numbers as lists of a shape."""
    return [_nested(numbers, shape[1:]) for _ in range(shape[0])] if shape else next(numbers)


def bytes_of(memory: Memory) -> Any:
    """Return the bytes of memory, as a buffer; `ctypes.string_at` has them up to 2 GiB alone."""
    return (ctypes.c_char * memory.nbytes).from_address(memory.address)


def tensor_of(memory: Memory) -> Tensor:
    """Return a tensor over memory."""
    made = _class(memory.element, memory.shape)
    tensor: Tensor = made.from_address(memory.address) if issubclass(made, _BUFFERS) else made()
    tensor._memory = memory
    return tensor


_BUFFERS: tuple[Any, ...] = (ctypes.Array, ctypes._SimpleCData)


class _Half(Tensor):
    """A tensor of a type that ctypes lacks."""

    if sys.version_info >= (3, 12):

        def __buffer__(self, flags: int) -> memoryview:
            """Return the buffer of a float16."""
            if not self._memory.element.format:
                raise BufferError(f"Python's buffers have no {self.dtype}; read the tensor by __dlpack__")
            raw = bytes_of(self._memory)
            raw.owner = self._memory
            return memoryview(raw).cast("B").cast(self._memory.element.format, self.shape)


@kept
def _class(element: Element, shape: tuple[int, ...]) -> Any:
    """Return the class of tensors of a type and shape: those that ctypes knows have its arrays' buffer protocol."""
    number = _NUMBERS.get(element.format)
    if number is None:
        return _Half
    for size in reversed(shape):
        number = number * size
    return type("Tensor", (Tensor, number), {"__module__": __name__, "__repr__": Tensor.__repr__})
