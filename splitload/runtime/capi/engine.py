"""The engine of the C library: stages loaded and run without numpy and without onnxruntime's Python module."""

from __future__ import annotations

import _thread
import ctypes
import os

from splitload.base.machine import inference_threads
from splitload.bundle.manifest import TensorSpec
from splitload.runtime.boundaries import Boundaries
from splitload.runtime.capi.elements import BY_TYPE, BYTES
from splitload.runtime.capi.library import Library, RuntimeFailure, module_errors, runtime_error
from splitload.runtime.capi.memory import Memory, UnknownKindError, address_of, memory_of
from splitload.runtime.capi.session import Session, Value, open_session, value_of
from splitload.runtime.capi.tensor import bytes_of, numpy_for, tensor_of, tensor_over
from splitload.runtime.forks import making_session
from splitload.runtime.settings import EXACT, PLAIN, SHARES, SHRINKS, SPINNING, file_entries
from splitload.runtime.tiny import TINY_MODEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal

    from splitload.runtime.session import StageIO

_LARGE_BYTES = 4 << 20  # smaller models compute in less than the large pages that an arena would begin with
_NO_TENSORS = ("c", "f", "m", "M")  # kinds of numpy's types that are no tensor's: of these the module has another error


class LibraryEngine:
    """See `splitload.runtime.engine.Engine`; values are `Value`, answers `Tensor`.

    Args:
        library: The C library.
    """

    name: Literal["library", "python"] = "library"

    def __init__(self, library: Library) -> None:
        self.version = library.version
        self._library = library

    def open(
        self, graph: str, *, prepack: bool, mapped: bool, optimize: bool, background: bool, share_memory: bool
    ) -> Session:
        """Return a session on a stage's graph file."""
        entries = SPINNING | file_entries(graph, prepack=prepack, mapped=mapped)
        if share_memory:
            with module_errors():
                _share_arena(self._library)
            entries |= SHARES
        with making_session(), module_errors():
            return open_session(
                self._library, graph, entries, threads=inference_threads(), optimize=optimize, background=background,
                large_pages=not share_memory and _is_large(graph),
            )  # fmt: skip

    def names(self, session: Session) -> tuple[set[str], set[str]]:
        """Return the names of the inputs and of the outputs of a session."""
        return set(session.input_names()), set(session.output_names())

    def value(self, spec: TensorSpec | None, given: Any) -> Value:
        """Return a tensor over the memory of what is given; a list is made an array by numpy."""
        if isinstance(given, Value):
            return given
        if isinstance(given, bytes) and (spec is None or spec.type != BYTES):
            raise RuntimeError(f"Unexpected input data type{_of(spec)}: bytes are a tensor for a {BYTES} alone")
        try:
            memory = memory_of(given)
        except UnknownKindError as error:
            if isinstance(given, dict) and given:
                raise runtime_error("InvalidArgument", f"Unexpected input data type{_of(spec)}") from None
            if spec is None or not isinstance(given, list):
                raise RuntimeError(str(error)) from None
            memory = memory_of(_array_of(given, BY_TYPE[spec.type].name))
        except TypeError as error:
            message = f"Unexpected input data type{_of(spec)}: {error}"
            if _is_of_module(given):
                raise runtime_error("InvalidArgument", message) from error
            raise RuntimeError(message) from error
        with module_errors():
            return value_of(self._library, memory)

    def described(self, value: Value) -> tuple[str, Sequence[int]]:
        """Return the type and shape of a tensor."""
        memory = value.memory
        return memory.element.type, memory.shape

    def boundaries(self, otherwise: set[str]) -> Boundaries:
        """Return memory for what the stages of a run hand on."""
        return Boundaries(_mapped, self._lent, otherwise)

    def run_stage(
        self,
        session: Session,
        stage: StageIO,
        needed: list[str],
        values: Mapping[str, Any],
        run_options: Any,
        *,
        keep: bool,
        boundaries: Boundaries,
    ) -> list[Any]:
        """Return the outputs that are needed."""
        feeds = {name: values[name] for name in stage.inputs if values.get(name) is not None}
        targets = boundaries.lend(stage.outputs, needed)
        with module_errors():
            try:
                return session.run(needed, feeds, targets)
            except RuntimeFailure:  # a shape is declared wrongly, or the same is raised again
                if not targets:
                    raise
                results = session.run(needed, feeds, {})
                boundaries.otherwise.update(targets)
                return results

    def answer(self, value: Value) -> Any:
        """Return a tensor."""
        return tensor_of(value.memory)

    def given_back(self, spec: TensorSpec, value: Value) -> Any:
        """Return a copy of a tensor that was given."""
        memory = value.memory
        return tensor_over(bytearray(bytes_of(memory)), memory.element, memory.shape)

    def canary(self, graph: str) -> list[float]:
        """Return what a canary gives."""
        with module_errors():
            with making_session():
                session = open_session(self._library, graph, PLAIN, threads=1)
            values = session.run(session.output_names(), {}, {})
        return [number for value in values for number in tensor_of(value.memory).numbers()]

    def reserve(self, session: Session, size_bytes: int) -> None:
        """Have the arena that a session shares with others hold a free piece of so many bytes, which nobody touches."""
        with module_errors():
            session.reserve(size_bytes)

    def empty_arena(self) -> None:
        """Give back to the system what nobody uses of the arena of all stages, by a run of the smallest model."""
        if not _have_arena:
            return
        library = self._library
        try:
            with making_session():
                session = open_session(library, TINY_MODEL, SHARES, threads=1)
            options = library.made(library.CreateRunOptions)
            try:
                for key, value in SHRINKS.items():
                    library.AddRunConfigEntry(options, key.encode(), value.encode())
                session.run(["y"], {"x": self.value(None, (ctypes.c_float * 1)())}, {}, options)
            finally:
                library.ReleaseRunOptions(options)
        except RuntimeFailure:  # then the next model takes it
            pass

    def _lent(self, memory: Any, spec: TensorSpec, shape: tuple[int, ...]) -> Value:
        """Return a tensor over the beginning of memory that is lent to a stage."""
        return value_of(self._library, Memory(address_of(memory), shape, BY_TYPE[spec.type], memory))


def _is_large(graph: str) -> bool:
    try:
        return os.path.getsize(graph) >= _LARGE_BYTES
    except OSError:  # the runtime says what is wrong
        return False


def _of(spec: TensorSpec | None) -> str:
    """Return the words of an error that name an input."""
    return "" if spec is None else f" for input: {spec.name}"


def _is_of_module(given: Any) -> bool:
    """Return whether the Python module takes something for a tensor, if perhaps of another type."""
    kind = getattr(getattr(given, "dtype", None), "kind", None)
    return type(given).__name__ == "OrtValue" or (isinstance(kind, str) and kind not in _NO_TENSORS)


def _mapped(size: int) -> Any:
    """Return memory of the system's, in huge pages where it has such."""
    import mmap

    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _array_of(given: list[Any], dtype: str) -> Any:
    """Return a list as an array, or raise what the Python module raises."""
    np = numpy_for("a list as an input", "array.array, a memoryview or another buffer")
    try:
        return np.array(given, dtype)
    except (TypeError, ValueError, OverflowError):
        raise RuntimeError("Could not create tensor from given input list") from None


_have_arena: set[str] = set()  # paths of the libraries that have the arena of all stages
_arenas = _thread.allocate_lock()


def _share_arena(library: Library) -> None:
    """Make the arena of all stages, the first time; see `splitload.runtime.arena`."""
    with _arenas:
        if library.path not in _have_arena:
            with making_session():
                library.register_arena(EXACT)
            _have_arena.add(library.path)


def _after_in_child() -> None:
    global _arenas
    _have_arena.clear()
    _arenas = _thread.allocate_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)
