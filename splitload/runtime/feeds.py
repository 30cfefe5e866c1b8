"""The arguments of `ParallelLoader.run`, checked as onnxruntime checks them, before any stage is waited for."""

from __future__ import annotations

from splitload.bundle.manifest import Manifest, TensorSpec
from splitload.runtime.capi.elements import BYTES
from splitload.runtime.capi.memory import memory_of
from splitload.runtime.capi.tensor import tensor_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from splitload.runtime.engine import Engine


def checked(
    engine: Engine, manifest: Manifest, output_names: Iterable[str] | None, feeds: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """Return the outputs that are wanted and the feeds, in the runtime's form.

    Args:
        engine: What runs the model.
        manifest: What the model has.
        output_names: Names of outputs; None or empty for all.
        feeds: A value for each input, by name.

    An input that is None is not handed to the runtime, as by a session: what reads it fails when it runs.

    Raises:
        ValueError: If a required input is missing.
        TypeError: If names are no strings.
        RuntimeError: If a value is of a kind that no input takes.
        onnxruntime's InvalidArgument: If a name is unknown, or a tensor of another type or shape than the model's.
    """
    inputs = {spec.name: spec for spec in manifest.inputs}
    outputs = [spec.name for spec in manifest.outputs]
    check_given(manifest, feeds.keys())
    wanted = _names(output_names) if output_names else outputs  # whatever is false stands for all
    values: dict[str, Any] = dict(zip(_names(feeds.keys()), feeds.values(), strict=True))
    given = [name for name, value in values.items() if value is not None]
    values.update({name: engine.value(inputs.get(name), values[name]) for name in given})
    for what, names, known in (("input", given, [*inputs]), ("output", wanted, outputs)):
        for name in names:
            if name not in known:
                hint = "; those with a default value have it built in" if what == "input" else ""
                raise invalid_argument(f"Invalid {what} name: {name}; the model has {known}{hint}")
    for name in given:
        if described := engine.described(values[name]):
            _check_tensor(inputs[name], *described)
    return wanted, values


def check_given(manifest: Manifest, names: Iterable[Any]) -> None:
    """Raise `ValueError` if the name of a required input is not among those that are given, whatever else is."""
    given = list(names)
    missing = [spec.name for spec in manifest.inputs if spec.name not in given and not spec.type.startswith("optional")]
    if missing:
        raise ValueError(f"Required inputs ({missing}) are missing from input feed ({given}).")


def to_ort(ort: Any, value: Any, type_: str | None = None) -> Any:
    """Return an array as an OrtValue; arrays without numbers cannot be one, and they and all else stay as they are.

    Args:
        ort: The onnxruntime module.
        value: What is given.
        type_: What the input takes, see `as_array`.
    """
    import numpy as np

    made = as_array(value, type_)
    if isinstance(made, np.ndarray) and made.dtype.char not in "OSUV":
        return ort.OrtValue.ortvalue_from_numpy(made)
    return value


def native(value: Any) -> Any:
    """Return an array in this machine's byte order; onnxruntime would read the bytes of any other as if it were that.

    All else is returned as it is.
    """
    dtype: Any = getattr(value, "dtype", None)
    return value if getattr(dtype, "isnative", True) else value.astype(dtype.newbyteorder("="))


def arrays_of(manifest: Manifest, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return feeds as the Python module takes them."""
    types = {spec.name: spec.type for spec in manifest.inputs}
    return {name: as_array(value, types.get(name)) for name, value in feeds.items()}


def as_array(value: Any, type_: str | None = None) -> Any:
    """Return what the Python module takes: whatever has numbers that lie in memory as an array over them.

    All else is returned as it is.

    Args:
        value: What is given.
        type_: What the input takes, such as "tensor(uint8)"; bytes are numbers to that one alone.
    """
    import numpy as np

    if isinstance(value, np.ndarray):
        return native(value)
    if type(value).__name__ == "OrtValue" or isinstance(value, np.generic):
        return value
    if isinstance(value, bytes) and type_ != BYTES:
        return value
    try:
        memory = memory_of(value)
    except TypeError:  # of `memory_of`, for what it cannot read
        return value
    return value if memory.element.kind == "V" else np.asarray(tensor_of(memory))


def answered(
    engine: Engine, manifest: Manifest, wanted: Sequence[str], values: Mapping[str, Any], *, keep: bool
) -> list[Any]:
    """Return outputs as `run` does: what was given for inputs that are outputs too as copies.

    Args:
        engine: What ran the model.
        manifest: What the model has.
        wanted: Names of outputs.
        values: What the runtime was given and gave, in its form.
        keep: Whether it stays in that form, and is not copied: so does a session with the OrtValue that it is given.
    """
    if keep:
        return [values.get(name) for name in wanted]
    inputs = {spec.name: spec for spec in manifest.inputs}
    answers = []
    for name in wanted:
        if name not in inputs:
            answers.append(engine.answer(values[name]))
        else:
            value = values.get(name)
            answers.append(None if value is None else engine.given_back(inputs[name], value))
    return answers


def given_back(ort: Any, spec: TensorSpec, value: Any) -> Any:
    """Return what was given for an input that is an output too, as a session's `run` does: a copy, of the input's type.

    Args:
        ort: The onnxruntime module.
        spec: The input.
        value: What was given, in the runtime's form if it is a tensor of numbers.
    """
    import copy

    import numpy as np

    if isinstance(value, ort.OrtValue):
        return value.numpy().copy() if value.is_tensor() else value
    if spec.type == "tensor(string)":
        return np.asarray(np.frompyfunc(str, 1, 1)(value), dtype=object)
    if spec.type.startswith("tensor("):
        from splitload.runtime.inputs import DTYPES  # for a list

        return np.array(value, DTYPES.get(spec.type))
    return copy.deepcopy(value)


def _names(names: Iterable[Any]) -> list[str]:
    """Return the names as a list; a single string is refused and bytes are taken, as by onnxruntime."""
    listed = [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names]
    if isinstance(names, str) or not all(isinstance(name, str) for name in listed):
        raise TypeError(f"names must be a list of strings, not {names!r}")
    return listed


def _check_tensor(spec: TensorSpec, actual: str, shape: Sequence[int]) -> None:
    """Raise what onnxruntime raises for a tensor that does not fit, before a stage is waited for."""
    if not spec.type.startswith("tensor("):
        return
    if actual != spec.type:
        raise invalid_argument(
            f"Unexpected input data type for input: {spec.name}. Actual: ({actual}), expected: ({spec.type})"
        )
    if not spec.shape:
        return  # of any rank
    if len(shape) != len(spec.shape):
        raise invalid_argument(f"Invalid rank for input: {spec.name} Got: {len(shape)} Expected: {len(spec.shape)}")
    if any(isinstance(size, int) and size != got for size, got in zip(spec.shape, shape, strict=True)):
        raise invalid_argument(
            f"Got invalid dimensions for input: {spec.name} Got: {list(shape)} Expected: {list(spec.shape)}"
        )


def invalid_argument(message: str) -> Exception:
    """Return onnxruntime's error for arguments that do not fit; a RuntimeError where its Python module is not there."""
    from splitload.runtime.capi.library import runtime_error

    return runtime_error("InvalidArgument", message)
