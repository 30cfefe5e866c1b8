"""Where the elements of what a caller gives lie: read from its buffer, its array interface or DLPack, not copied."""

from __future__ import annotations

import ctypes
import math
import sys
from _operator import index  # `operator` is a file to read
from ctypes import c_int, c_int32, c_int64, c_ssize_t, c_uint8, c_uint16, c_uint64, c_void_p, py_object

from splitload.base.record import Record
from splitload.runtime.capi.elements import BY_DLPACK, BY_KIND, BY_TYPE, Element, of_format

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CPU = (1, 3)  # DLPack's numbers of memory that the processor reads: its own, and such that a GPU reads as well
_SIMPLE = 0  # PyBUF_SIMPLE
_MAX_DIMENSIONS = 64  # of what Python's buffers have
_MAX_ADDRESS = 2 * sys.maxsize + 1


class UnknownKindError(TypeError):
    """What is given is nothing whose elements can be found."""


class Memory(Record):
    """A tensor in the processor's memory, in C order.

    Attributes:
        address: Address of its first byte.
        shape: Its sizes.
        element: The type of its elements.
        owner: What keeps the memory.
    """

    address: int
    shape: tuple[int, ...]
    element: Element
    owner: Any

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.element.item_bytes


class Buffer(ctypes.Structure):
    """Source: `Py_buffer`, part of Python's stable interface since 3.11."""

    _fields_ = (
        ("buf", c_void_p), ("obj", c_void_p), ("len", c_ssize_t), ("itemsize", c_ssize_t), ("readonly", c_int),
        ("ndim", c_int), ("format", c_void_p), ("shape", c_void_p), ("strides", c_void_p), ("suboffsets", c_void_p),
        ("internal", c_void_p),
    )  # fmt: skip


class DLTensor(ctypes.Structure):
    """Source: `DLManagedTensor` of dlpack.h, with the `DLTensor` that it begins with."""

    _fields_ = (
        ("data", c_void_p), ("device_type", c_int32), ("device_id", c_int32), ("ndim", c_int32), ("code", c_uint8),
        ("bits", c_uint8), ("lanes", c_uint16), ("shape", ctypes.POINTER(c_int64)),
        ("strides", ctypes.POINTER(c_int64)), ("byte_offset", c_uint64), ("manager_ctx", c_void_p),
        ("deleter", c_void_p),
    )  # fmt: skip


_python: Any = ctypes.pythonapi
get_buffer = ctypes.PYFUNCTYPE(c_int, py_object, c_void_p, c_int)(("PyObject_GetBuffer", _python))
release_buffer = ctypes.PYFUNCTYPE(None, c_void_p)(("PyBuffer_Release", _python))
capsule_pointer = ctypes.PYFUNCTYPE(c_void_p, py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _python))


def memory_of(given: Any) -> Memory:
    """Return where the elements of an array-like lie; what is not in C order is copied, all else is not.

    Args:
        given: A tensor of splitload's or of onnxruntime's, or what has the buffer protocol, `__array_interface__` or
            `__dlpack__`.

    Raises:
        UnknownKindError: If it is none of these.
        TypeError: If its elements are of a type, in a byte order or on a device that cannot be read, or it says of them
            what cannot be.
    """
    try:
        return _found(given)
    except (TypeError, MemoryError):
        raise
    except Exception as error:  # whatever the code of the caller's class has met
        raise TypeError(f"{type(given).__name__} cannot be read: {error or type(error).__name__}") from error


def _found(given: Any) -> Memory:
    own = getattr(given, "_memory", None)
    if isinstance(own, Memory):
        return own
    if (ort := sys.modules.get("onnxruntime")) is not None and isinstance(given, getattr(ort, "OrtValue", ())):
        return _of_ort_value(given)
    if (numpy := sys.modules.get("numpy")) is not None and isinstance(given, getattr(numpy, "generic", ())):
        raise UnknownKindError(f"Unable to handle object of type {type(given)}")  # a scalar, as the Python module says
    try:
        view = memoryview(given)
    except TypeError:
        pass
    except (ValueError, BufferError):  # numpy's, for types that no buffer has
        if not hasattr(given, "__array_interface__"):
            raise TypeError(f"the buffer of {type(given).__name__} cannot be read") from None
    else:
        return _of_view(view, given)
    if hasattr(given, "__array_interface__"):
        return _of_interface(given)
    if hasattr(given, "__dlpack__"):
        return _of_dlpack(given)
    raise UnknownKindError(f"Unable to handle object of type {type(given)}")


def address_of(view: memoryview | Any) -> int:
    """Return the address of the first byte of a buffer in C order; it holds for as long as the buffer is kept.

    Raises:
        BufferError: If it is in another order.
    """
    buffer = Buffer()
    get_buffer(view, ctypes.addressof(buffer), _SIMPLE)
    address: int = buffer.buf or 0
    release_buffer(ctypes.addressof(buffer))
    return address


def _of_view(view: memoryview, given: Any) -> Memory:
    element = of_format(view.format, view.itemsize)
    if element is None:
        swapped = getattr(getattr(given, "dtype", None), "isnative", True) is False
        if swapped:
            return _of_view(memoryview(given.astype(given.dtype.newbyteorder("="))), None)
        raise TypeError(f"elements of format '{view.format}' cannot be read; give one of {', '.join(BY_TYPE)}")
    shape = tuple(view.shape or ())
    if not view.c_contiguous:
        copy = bytearray(view.tobytes())
        return Memory(address_of(copy), shape, element, copy)
    return Memory(address_of(view), shape, element, view)


def _of_interface(given: Any) -> Memory:
    """Read `__array_interface__`, version 3."""
    interface, name = given.__array_interface__, type(given).__name__
    typestr, shape, strides, data, mask = (
        interface.get(key) for key in ("typestr", "shape", "strides", "data", "mask")
    )
    if not (isinstance(typestr, str) and isinstance(shape, tuple) and isinstance(data, tuple) and data):
        raise TypeError(f"the array interface of {name} lacks a typestr, a shape or an address")
    if mask is not None:
        raise TypeError(f"{name} has a mask; give its elements alone")
    element = BY_KIND.get((typestr[1:2], int(typestr[2:]))) if typestr[2:].isdecimal() else None
    if str(getattr(given, "dtype", "")) == "bfloat16":
        element = BY_TYPE["tensor(bfloat16)"]
    if element is None or (element.item_bytes > 1 and typestr[0] != element.typestr[0]):
        raise TypeError(f"elements of type '{typestr}' cannot be read; give one of {', '.join(BY_TYPE)}")
    if strides is not None and not _in_c_order(shape, tuple(strides), element.item_bytes):
        raise TypeError(f"{name} is not in C order; give a copy that is")
    return _checked(data[0], shape, element, given, name)


def _of_dlpack(given: Any) -> Memory:
    device, _ = given.__dlpack_device__()
    is_negated = getattr(given, "is_neg", None)
    if callable(is_negated) and is_negated():  # torch's sign that is not in memory yet, of which DLPack says nothing
        raise TypeError(f"{type(given).__name__} has its sign beside its memory; give .resolve_neg()")
    capsule = given.__dlpack__() if device in _CPU else None
    tensor = None if capsule is None else DLTensor.from_address(capsule_pointer(capsule, b"dltensor"))
    name = type(given).__name__
    if tensor is None or tensor.device_type not in _CPU:
        where = device if tensor is None else tensor.device_type
        raise TypeError(f"{name} lies on device {where} of DLPack's; copy it to the processor's memory")
    element = BY_DLPACK.get((tensor.code, tensor.bits // 8)) if tensor.lanes == 1 and tensor.bits % 8 == 0 else None
    if element is None:
        raise TypeError(
            f"elements of DLPack's type {tensor.code} with {tensor.bits} bits cannot be read; give one of "
            f"{', '.join(BY_TYPE)}"
        )
    if not 0 <= tensor.ndim <= (_MAX_DIMENSIONS if tensor.shape else 0):
        raise TypeError(f"{name} has {tensor.ndim} dimensions; those of at most {_MAX_DIMENSIONS} can be read")
    shape = tuple(tensor.shape[: tensor.ndim]) if tensor.ndim else ()
    if tensor.strides:
        strides = tuple(stride * element.item_bytes for stride in tensor.strides[: tensor.ndim])
        if not _in_c_order(shape, strides, element.item_bytes):
            raise TypeError(f"{name} is not in C order; give a copy that is, such as .contiguous()")
    return _checked((tensor.data or 0) + tensor.byte_offset, shape, element, (given, capsule), name)


def _checked(address: Any, shape: tuple[Any, ...], element: Element, owner: Any, name: str) -> Memory:
    """Return memory as it is said to be, or raise `TypeError` where no memory is like that."""
    memory = Memory(index(address), tuple(map(index, shape)), element, owner)
    size = memory.nbytes
    if any(not 0 <= each <= sys.maxsize for each in (*memory.shape, size)):
        raise TypeError(f"{name} is said to have the shape {memory.shape}, which no memory holds")
    if not (bool(size) <= memory.address <= _MAX_ADDRESS - size):
        raise TypeError(f"{name} is said to have {size} bytes at the address {memory.address}, where no memory is")
    return memory


def _of_ort_value(given: Any) -> Memory:
    """Read an `onnxruntime.OrtValue`, which keeps its memory."""
    if not given.is_tensor() or given.data_type() not in BY_TYPE or given.device_name().lower() != "cpu":
        raise TypeError(f"an OrtValue of {given.data_type()} cannot be read without the Python module")
    return Memory(given.data_ptr(), tuple(given.shape()), BY_TYPE[given.data_type()], given)


def _in_c_order(shape: tuple[Any, ...], strides: tuple[Any, ...], item_bytes: int) -> bool:
    """Return whether elements follow each other in memory; strides of sizes of one or of empty tensors say nothing."""
    if len(shape) != len(strides):
        return False
    expected = item_bytes
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected and 0 not in shape:
            return False
        expected *= size
    return True
