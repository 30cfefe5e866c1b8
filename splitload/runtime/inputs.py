"""Feeds for a model: read from .npy files, or made up where none are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol

from splitload.base.errors import ModelError, UsageError
from splitload.runtime.capi.elements import BY_TYPE, ELEMENTS
from splitload.runtime.feeds import native
from splitload.runtime.light_inputs import made_up_tensor, read_npy

if TYPE_CHECKING:  # importing it takes longer than most bundles load
    import numpy as np

# numpy's names of the types of tensors
DTYPES = {element.type: element.name for element in ELEMENTS if element.kind != "V"} | {"tensor(string)": "object"}

_NARROW = {  # types that numpy lacks: TensorProto number, the bits of 1.0, and an integer type of their size
    "tensor(bfloat16)": (16, 0x3F80, "uint16"),
    "tensor(float8e4m3fn)": (17, 0x38, "uint8"),
    "tensor(float8e4m3fnuz)": (18, 0x40, "uint8"),
    "tensor(float8e5m2)": (19, 0x3C, "uint8"),
    "tensor(float8e5m2fnuz)": (20, 0x40, "uint8"),
}


Arrays = Literal["numpy", "buffers"]


class InputSpec(Protocol):
    """What is known of an input; onnxruntime's NodeArg and splitload's TensorSpec both fit."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def type(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> Any: ...  # noqa: D102


def example_inputs(
    specs: Iterable[InputSpec], given: Mapping[str, Any] | None = None, seed: int = 0, arrays: Arrays = "numpy"
) -> dict[str, Any]:
    """Return one feed for each input: the given one, or a made-up array of its type and shape.

    Open dimensions become 1. Floats are standard normal, everything else is 1, which is a valid index, mask and trip
    count for most models. What numpy has no type for, such as bfloat16, comes as an `onnxruntime.OrtValue`.

    Args:
        specs: The model's inputs.
        given: Feeds that are known, by input name.
        seed: Seed of the made-up floats.
        arrays: What is made up: "numpy" arrays, or with "buffers" a `Tensor` of other floats, without importing numpy.

    Raises:
        ModelError: If an input is of a type that cannot be made up, or too large.
        UsageError: If `given` names no input.
    """
    make = _maker(seed, arrays)
    known = BY_TYPE if arrays == "buffers" else DTYPES | _NARROW
    given = dict(given or {})
    feeds: dict[str, Any] = {}
    for spec in specs:
        if spec.name in given:
            feeds[spec.name] = given.pop(spec.name)
        elif spec.type.startswith("optional"):
            continue
        else:
            if spec.type not in known:
                raise ModelError(f"input '{spec.name}' is a {spec.type}; no example of that type can be made up")
            try:
                feeds[spec.name] = make(spec.type, _shape(spec))
            except (MemoryError, OverflowError, ValueError) as error:  # numpy's for what no address space holds
                raise ModelError(f"no example of input '{spec.name}' of shape {spec.shape} fits in memory") from error
    if given:
        raise UsageError(f"the model has no input {sorted(given)}; it has {sorted(feeds)}")
    return feeds


def made_up(specs: Iterable[InputSpec], given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the inputs that `example_inputs` makes up."""
    return tuple(spec.name for spec in specs if spec.name not in given and not spec.type.startswith("optional"))


def cure(made_up: Iterable[str]) -> str:
    """Return the end of a message that says how to give the inputs that were made up; nothing where none were."""
    names = ", ".join(made_up)
    return f"; give fitting inputs with --input NAME=FILE.npy (made up: {names})" if names else ""


def _shape(spec: InputSpec) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) and size >= 0 else 1 for size in spec.shape or ())


def _maker(seed: int, arrays: Arrays) -> Callable[[str, tuple[int, ...]], Any]:
    """Return what makes up a value of a type and shape."""
    if arrays == "buffers":
        return lambda type_, shape: made_up_tensor(BY_TYPE[type_], shape, seed)
    import numpy as np

    rng = np.random.default_rng(seed)
    return lambda type_, shape: _made_up(type_, shape, rng)


def _made_up(type_: str, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    import numpy as np

    if type_ in _NARROW:
        import onnxruntime as ort

        number, bits, integer = _NARROW[type_]
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.full(shape, bits, integer), number)
    dtype = np.dtype(DTYPES[type_])
    if dtype.kind == "O":
        return np.full(shape, "a", dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return np.ones(shape, dtype)


def read_feeds(pairs: Iterable[str], arrays: Arrays = "numpy") -> dict[str, Any]:
    """Read `NAME=FILE.npy` pairs.

    Args:
        pairs: The words.
        arrays: What is returned: "numpy" arrays, or with "buffers" a `Tensor` wherever numpy is not needed to read it.

    Raises:
        UsageError: If a pair is malformed or its file is no array.
    """
    feeds: dict[str, Any] = {}
    for pair in pairs:
        name, sign, file = pair.partition("=")
        if not (name and sign and file):
            raise UsageError(f"--input takes NAME=FILE.npy, not '{pair}'")
        try:
            with Path(file).open("rb") as stream:
                array = _array_in(stream, arrays)
        except ImportError:
            raise
        except OSError as error:
            raise UsageError(f"cannot read '{file}': {error.strerror or error}") from error
        except Exception as error:  # numpy's many for another kind of file; they advise to trust it
            raise UsageError(
                f"cannot read '{file}' as a .npy array: it is another kind of file, damaged, or holds Python objects; "
                "numpy.save writes arrays of numbers or text"
            ) from error
        if not hasattr(array, "dtype"):
            raise UsageError(f"'{file}' holds several arrays; --input takes one .npy array for each input")
        feeds[name] = native(array)
    return feeds


def _array_in(stream: BinaryIO, arrays: Arrays) -> Any:
    if arrays == "buffers":
        if (tensor := read_npy(stream)) is not None:
            return tensor
        stream.seek(0)
    import numpy as np

    return np.load(stream, allow_pickle=False)


def save_feeds(feeds: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Save given inputs as .npy files in `folder`, for another process; return the path of each.

    Raises:
        ModelError: If one is no array.
    """
    import numpy as np

    files = {}
    for number, (name, array) in enumerate(feeds.items()):
        if not isinstance(array, np.ndarray):
            raise ModelError(f"input '{name}' is no array; only models on arrays can be measured on this host")
        files[name] = str(folder / f"feed-{number}.npy")
        plain = native(np.asarray(array, order="C"))  # which is read without numpy too, see `read_npy`
        np.save(files[name], plain.astype(str) if plain.dtype == object else plain, allow_pickle=False)
    return files


def load_feeds(files: Mapping[str, str], arrays: Arrays = "numpy") -> dict[str, Any]:
    """Read what `save_feeds` wrote.

    Args:
        files: The path of each input.
        arrays: What is returned, see `read_feeds`.
    """
    feeds = {}
    for name, file in files.items():
        with Path(file).open("rb") as stream:
            array = _array_in(stream, arrays)
        feeds[name] = array.astype(object) if getattr(array.dtype, "kind", "") == "U" else array
    return feeds
