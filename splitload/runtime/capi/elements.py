"""The types of elements that pass through the C library without its Python module, in the words of each interface."""

from __future__ import annotations

import sys

from splitload.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


class Element(Record):
    """A type of elements.

    Attributes:
        type: onnxruntime's word for a tensor of them, such as "tensor(float)".
        name: numpy's word, such as "float32".
        number: Value of the enumeration ONNXTensorElementDataType.
        item_bytes: Bytes of one.
        kind: The letter of `__array_interface__`, such as "f"; "V" where numpy has no such type.
        format: The letter of `struct`; "" where it has none.
        dlpack_code: Value of the enumeration DLDataTypeCode.
    """

    type: str
    name: str
    number: int
    item_bytes: int
    kind: str
    format: str
    dlpack_code: int

    @property
    def typestr(self) -> str:
        """The type as `__array_interface__` says it, in this machine's byte order."""
        return f"{'|' if self.item_bytes == 1 else _ORDER}{self.kind}{self.item_bytes}"


_ORDER = "<" if sys.byteorder == "little" else ">"
# Source: ONNXTensorElementDataType of onnxruntime_c_api.h, and DLDataTypeCode of dlpack.h
_INT, _UINT, _FLOAT, _BFLOAT, _BOOL = 0, 1, 2, 4, 6
ELEMENTS = (
    Element("tensor(float)", "float32", 1, 4, "f", "f", _FLOAT),
    Element("tensor(uint8)", "uint8", 2, 1, "u", "B", _UINT),
    Element("tensor(int8)", "int8", 3, 1, "i", "b", _INT),
    Element("tensor(uint16)", "uint16", 4, 2, "u", "H", _UINT),
    Element("tensor(int16)", "int16", 5, 2, "i", "h", _INT),
    Element("tensor(int32)", "int32", 6, 4, "i", "i", _INT),
    Element("tensor(int64)", "int64", 7, 8, "i", "q", _INT),
    Element("tensor(bool)", "bool", 9, 1, "b", "?", _BOOL),
    Element("tensor(float16)", "float16", 10, 2, "f", "e", _FLOAT),
    Element("tensor(double)", "float64", 11, 8, "f", "d", _FLOAT),
    Element("tensor(uint32)", "uint32", 12, 4, "u", "I", _UINT),
    Element("tensor(uint64)", "uint64", 13, 8, "u", "Q", _UINT),
    Element("tensor(bfloat16)", "bfloat16", 16, 2, "V", "", _BFLOAT),
)
BYTES = "tensor(uint8)"  # what bytes are an input for
BY_TYPE = {element.type: element for element in ELEMENTS}
BY_NUMBER = {element.number: element for element in ELEMENTS}
BY_KIND = {(element.kind, element.item_bytes): element for element in ELEMENTS if element.kind != "V"}
BY_DLPACK = {(element.dlpack_code, element.item_bytes): element for element in ELEMENTS}
_KINDS = dict.fromkeys("bhilqn", "i") | dict.fromkeys("BHILQN", "u") | dict.fromkeys("efd", "f") | {"?": "b"}


def of_format(code: str, item_bytes: int) -> Element | None:
    """Return the type that the format of a buffer means; None where it is another, or in the other byte order.

    Letters mean different sizes in different modes of `struct`, so the size of an item decides.
    """
    order, letter = (code[0], code[1:]) if code[:1] in "@=<>!" and code[1:] else ("@", code)
    if item_bytes > 1 and order in "<>!" and ("<" if order == "<" else ">") != _ORDER:
        return None
    return BY_KIND.get((_KINDS.get(letter, ""), item_bytes))
