"""Inputs and outputs bound to memory, as `onnxruntime.IOBinding` does for one session, for a model in stages."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

from splitload.base.errors import UsageError
from splitload.base.record import Record
from splitload.runtime.feeds import native


def check_device(device_type: str) -> None:
    """Raise `UsageError` unless memory of the processor is meant."""
    if device_type.lower() != "cpu":
        raise UsageError(
            f"a bundle's inputs and outputs lie in the processor's memory, not on '{device_type}'; bind 'cpu'"
        )


class Memory(Record):
    """Memory of the caller's that holds a tensor, or takes one.

    Attributes:
        element_type: A numpy type, or ONNX's number of a type.
        shape: Its sizes.
        address: Address of its first byte.
    """

    element_type: Any
    shape: tuple[int, ...]
    address: int


class Binding:
    """Inputs and outputs by name, with the methods of `onnxruntime.IOBinding`.

    An input is read when the model runs. An output that is bound to memory is written there, at the price of one copy;
    any other is new after each run.

    Attributes:
        owner: The loader that it belongs to.
        output_names: What is bound, in that order.
    """

    def __init__(self, ort: Any, owner: Any) -> None:
        self.owner = owner
        self._ort = ort
        self._inputs: dict[str, Any] = {}
        self._targets: dict[str, Any] = {}
        self._results: list[Any] = []

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs that are bound, in that order."""
        return list(self._targets)

    def bind_cpu_input(self, name: str, arr_on_cpu: Any) -> None:
        """Bind an input to an array."""
        self._inputs[name] = arr_on_cpu

    def bind_ortvalue_input(self, name: str, ortvalue: Any) -> None:
        """Bind an input to an `onnxruntime.OrtValue`."""
        self._inputs[name] = ortvalue

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int
    ) -> None:
        """Bind an input to memory of the processor; arguments as of `onnxruntime.IOBinding.bind_input`.

        Raises:
            UsageError: If it lies elsewhere.
        """
        check_device(device_type)
        self._inputs[name] = Memory(element_type, tuple(shape), buffer_ptr)

    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Sequence[int] | None = None,
        buffer_ptr: int | None = None,
    ) -> None:
        """Ask for an output, and bind it to memory where an address is given.

        Raises:
            UsageError: If it is to lie elsewhere than in the processor's memory.
            ValueError: If an address is given without type and shape.
        """
        check_device(device_type)
        if buffer_ptr is None:
            self._targets[name] = None
        elif element_type is None or shape is None:
            raise ValueError("`element_type` and `shape` are needed with the address of memory")
        else:
            self._targets[name] = Memory(element_type, tuple(shape), buffer_ptr)

    def bind_ortvalue_output(self, name: str, ortvalue: Any) -> None:
        """Ask for an output, and have it written into an `onnxruntime.OrtValue`."""
        self._targets[name] = ortvalue

    def synchronize_inputs(self) -> None:
        """Do nothing: the processor's memory needs no waiting for."""

    def synchronize_outputs(self) -> None:
        """Do nothing, see `synchronize_inputs`."""

    def clear_binding_inputs(self) -> None:
        """Forget all inputs."""
        self._inputs.clear()

    def clear_binding_outputs(self) -> None:
        """Forget all outputs."""
        self._targets.clear()
        self._results = []

    def get_outputs(self) -> list[Any]:
        """Return the outputs of the last run as `onnxruntime.OrtValue`, in the order in which they were bound."""
        return list(self._results)

    def get_outputs_as_ortvaluevector(self) -> Any:
        """Return the outputs of the last run in the runtime's own kind of list."""
        from onnxruntime.capi.onnxruntime_pybind11_state import OrtValueVector

        vector = OrtValueVector()
        for value in self._results:
            vector.push_back(value._get_c_value())
        return vector

    def copy_outputs_to_cpu(self) -> list[Any]:
        """Return the outputs of the last run as arrays."""
        return [value.numpy().copy() for value in self._results]

    def feeds(self) -> dict[str, Any]:
        """Return the inputs as `onnxruntime.OrtValue`, over the memory that they are bound to."""
        return {name: self._value(each) for name, each in self._inputs.items()}

    def fill(self, results: Sequence[Any]) -> None:
        """Take the outputs of a run, and write those that are bound to memory there.

        Raises:
            UsageError: If one is of another type or size than its memory.
        """
        kept = []
        for (name, target), result in zip(self._targets.items(), results, strict=True):
            if target is None:
                kept.append(result)
                continue
            place = self._value(target)
            takes, gives = ((each.data_type(), each.shape()) for each in (place, result))
            if takes != gives or gives[0] == "tensor(string)":
                raise UsageError(
                    f"output '{name}' is {gives[0]} of {gives[1]}, its memory takes {takes[0]} of {takes[1]}"
                )
            ctypes.memmove(place.data_ptr(), result.data_ptr(), result.tensor_size_in_bytes())
            kept.append(place)
        self._results = kept

    def _value(self, bound: Any) -> Any:
        """Return what is bound as an `onnxruntime.OrtValue` over its memory."""
        make = self._ort.OrtValue
        if isinstance(bound, make):
            return bound
        if not isinstance(bound, Memory):
            return make.ortvalue_from_numpy(native(bound))
        import numpy as np

        by_number = isinstance(bound.element_type, int)
        if by_number:  # types that numpy has not are numbers of the same width to it
            one, two = (
                make.ortvalue_from_shape_and_type([size], bound.element_type).tensor_size_in_bytes() for size in (1, 2)
            )
            if two != 2 * one:
                raise UsageError(f"elements of ONNX's type {bound.element_type} share bytes; bind an OrtValue instead")
            element = np.dtype(f"u{one}")
        else:
            element = np.dtype(bound.element_type)
        memory: Any = (ctypes.c_char * (math.prod(bound.shape) * element.itemsize)).from_address(bound.address)
        array: Any = np.ndarray(bound.shape, element, memory)
        if by_number:
            return make.ortvalue_from_numpy_with_onnx_type(array, bound.element_type)
        return make.ortvalue_from_numpy(array)
