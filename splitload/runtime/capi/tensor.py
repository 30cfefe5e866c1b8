"""A tensor without numpy: what `ParallelLoader(…, arrays="buffers")` gives, and whatever reads arrays takes."""

from __future__ import annotations

import ctypes
import sys

from splitload.base.errors import MissingPackageError
from splitload.base.kept import kept
from splitload.runtime.capi.elements import BY_KIND, BY_TYPE, Element
from splitload.runtime.capi.memory import (
    Buffer,
    DLTensor,
    Memory,
    address_of,
    capsule_pointer,
    get_buffer,
    memory_of,
    release_buffer,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_CPU = (1, 0)  # DLPack's device type and number of the processor
_WITH_FORMAT = 4  # PyBUF_FORMAT
_view_from = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p)(("PyMemoryView_FromBuffer", ctypes.pythonapi))
_BYTE = ctypes.c_uint8()  # where tensors without elements lie that have no memory: older numpys do not take null
_AS_BITS = {"bfloat16": "u2", "bool": "u1"}  # in DLPack: numpy has no bfloat16, and refuses bool before 1.25
_NUMBERS: dict[str, Any] = {
    "f": ctypes.c_float, "d": ctypes.c_double, "?": ctypes.c_bool, "b": ctypes.c_int8, "B": ctypes.c_uint8,
    "h": ctypes.c_int16, "H": ctypes.c_uint16, "i": ctypes.c_int32, "I": ctypes.c_uint32, "q": ctypes.c_int64,
    "Q": ctypes.c_uint64,
}  # fmt: skip


class Tensor:
    """An output of a model: numbers in C order, in memory that lives as long as this does.

    `memoryview(tensor)`, `numpy.asarray(tensor)` and `torch.from_dlpack(tensor)` read it without copying. Python's
    buffers have no bfloat16, and those of Python 3.11 no float16: such tensors have `__array_interface__` and DLPack.
    `copy.copy`, `copy.deepcopy` and `pickle` make tensors with memory of their own.

    A class of Python's can offer a buffer from version 3.12 on. Before, a tensor is an array of ctypes too; what it has
    of that beside the buffer is no part of the interface.

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
            "version": 3, "shape": memory.shape, "typestr": memory.element.typestr, "strides": None,
            "data": (memory.address or ctypes.addressof(_BYTE), False),
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

    def __dir__(self) -> list[str]:
        return dir(Tensor)  # without what ctypes has beside it

    def __reduce__(self) -> tuple[Any, ...]:
        return restored, (self._memory.element.type, self.shape, self.tobytes())

    if sys.version_info >= (3, 12):

        def __buffer__(self, flags: int) -> memoryview:
            """Return the elements in the format of their type.

            Raises:
                BufferError: If they are bfloat16, for which there is none.
            """
            memory = self._memory
            code = memory.element.format
            if not code:
                raise BufferError(f"Python's buffers have no {self.dtype}; read the tensor by __dlpack__")
            if not memory.nbytes:
                return empty_view(code, memory.shape)
            raw = bytes_of(memory)
            raw.owner = memory
            return memoryview(raw).cast("B").cast(code, memory.shape)

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
        if self.dtype not in _AS_BITS:
            return np.asarray(self).__dlpack__(**wishes)
        wishes.pop("max_version", None)  # the structure of the first version is known here
        capsule = np.asarray(self).view(_AS_BITS[self.dtype]).__dlpack__(**wishes)
        DLTensor.from_address(capsule_pointer(capsule, b"dltensor")).code = self._memory.element.dlpack_code
        return capsule


def in_form(answer: Any, arrays: str) -> Any:
    """Return an output in the form that is asked for.

    Args:
        answer: A tensor, an array, or what is neither and stays as it is.
        arrays: "numpy" or "buffers".

    Raises:
        RuntimeError: If numpy has no type for it, as of onnxruntime's `run`.
        MissingPackageError: If it needs numpy, which is not installed.
    """
    if arrays == "buffers":
        is_array = type(answer).__module__ == "numpy" and BY_KIND.get((answer.dtype.kind, answer.dtype.itemsize))
        return tensor_of(memory_of(answer)) if is_array else answer
    if not isinstance(answer, Tensor):
        return answer
    np = numpy_for("an array as an output", 'ParallelLoader(…, arrays="buffers")')
    if answer.dtype == "bfloat16":
        raise RuntimeError('numpy has no type for bfloat16; ParallelLoader(…, arrays="buffers") gives it')
    return np.array(answer)


def numpy_for(what: str, instead: str) -> Any:
    """Return numpy, which is imported.

    Args:
        what: What needs it.
        instead: What can be done without it.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        import numpy as np
    except ImportError as error:
        from splitload.base.packages import missing

        raise MissingPackageError(f"{missing(what, 'numpy')}, or take {instead}") from error
    return np


def _nested(numbers: Iterator[Any], shape: tuple[int, ...]) -> Any:
    """Return the next numbers as lists of a shape."""
    return [_nested(numbers, shape[1:]) for _ in range(shape[0])] if shape else next(numbers)


def bytes_of(memory: Memory) -> Any:
    """Return the bytes of memory, as a buffer; `ctypes.string_at` has them up to 2 GiB alone."""
    return (ctypes.c_char * memory.nbytes).from_address(memory.address)


def tensor_of(memory: Memory) -> Tensor:
    """Return a tensor over memory."""
    made = _class(memory.element, memory.shape)
    tensor: Tensor = made() if made is Tensor else made.from_address(memory.address)
    tensor._memory = memory
    return tensor


def tensor_over(raw: bytearray, element: Element, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor over the bytes of its elements."""
    return tensor_of(Memory(address_of(raw), shape, element, raw))


def restored(type_: str, shape: tuple[int, ...], raw: bytes) -> Tensor:
    """Return a copy of a tensor; pickled tensors name this function.

    Args:
        type_: onnxruntime's word for its type, such as "tensor(float)".
        shape: Its sizes.
        raw: The bytes of its elements.
    """
    return tensor_over(bytearray(raw), BY_TYPE[type_], shape)


@kept
def _class(element: Element, shape: tuple[int, ...]) -> Any:
    """Return the class of tensors of a type and shape: those that ctypes knows have its arrays' buffer protocol."""
    number = _NUMBERS.get(element.format)
    if number is None or sys.version_info >= (3, 12):
        return Tensor
    for size in reversed(shape):
        number = number * size
    made = type("Tensor", (Tensor, number), {"__module__": __name__})
    _say_native(made, element.format)
    return made


def _say_native(made: Any, code: str) -> None:
    """Have the buffers of a new class of ctypes' say "f" and not "<f": `memoryview` indexes native formats alone.

    The word is memory of the class's own, and in Python 3.11, for which this is, it stays as it is.
    """
    buffer = Buffer()
    get_buffer(made.from_address(ctypes.addressof(buffer)), ctypes.addressof(buffer), _WITH_FORMAT)
    if len(ctypes.string_at(buffer.format)) == 2:
        ctypes.memmove(buffer.format, code.encode() + b"\0", 2)
    release_buffer(ctypes.addressof(buffer))


def empty_view(code: str, shape: tuple[int, ...]) -> memoryview:
    """Return a view of a tensor without elements, which `memoryview.cast` does not make.

    Args:
        code: The letter of `struct` for its type.
        shape: Its sizes, one of them 0.
    """
    word = _word(code)
    sizes = (ctypes.c_ssize_t * len(shape))(*shape)
    buffer = Buffer(
        buf=ctypes.addressof(word), itemsize=ctypes.sizeof(_NUMBERS.get(code, ctypes.c_int16)), ndim=len(shape),
        format=ctypes.addressof(word), shape=ctypes.addressof(sizes),
    )  # fmt: skip
    view: memoryview = _view_from(ctypes.addressof(buffer))
    return view


@kept
def _word(code: str) -> Any:
    """Return a letter where views without elements find it, for good."""
    return ctypes.create_string_buffer(code.encode())
