"""Sessions of the C library on stage files, and the values that go in and come out."""

from __future__ import annotations

import _thread
import ctypes
import os
import sys
from ctypes import c_char_p, c_int64, c_void_p

from splitload.base.kept import kept
from splitload.bundle.manifest import TensorSpec
from splitload.runtime.capi.elements import BY_NUMBER
from splitload.runtime.capi.library import Library, RuntimeFailure
from splitload.runtime.capi.memory import Memory
from splitload.runtime.settings import DISABLE_ALL, ENABLE_ALL, FATAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_NOT_IMPLEMENTED = 9  # of `OrtErrorCode`
_ARENA_BYTES = 8 << 20  # what many small models compute in; a larger one's arena goes on in regions of its own


class Value:
    """A tensor of the runtime's.

    Args:
        library: Whose it is.
        handle: Its address, which is released with this.
        memory: What it was made of; None for what the runtime made.
    """

    __slots__ = ("_library", "_memory", "_release", "handle")

    def __init__(self, library: Library, handle: int, memory: Memory | None = None) -> None:
        self._library, self.handle, self._memory = library, handle, memory
        self._release = library.ReleaseValue  # now: it cannot be looked up while the interpreter ends

    def __del__(self) -> None:
        self._release(self.handle)

    @property
    def memory(self) -> Memory:
        """Where its elements lie; they live for as long as the owner of this memory."""
        if self._memory is None:
            library = self._library
            info = library.made(library.GetTensorTypeAndShape, self.handle)
            try:
                element = BY_NUMBER[library.number(library.GetTensorElementType, info)]
                shape = (c_int64 * library.number(library.GetDimensionsCount, info))()
                library.GetDimensions(info, ctypes.addressof(shape), len(shape))
            finally:
                library.ReleaseTensorTypeAndShapeInfo(info)
            address = library.number(library.GetTensorMutableData, self.handle)
            return Memory(address, tuple(shape), element, self)
        return self._memory


def value_of(library: Library, memory: Memory) -> Value:
    """Return a tensor over memory, which it keeps."""
    shape = (c_int64 * len(memory.shape))(*memory.shape)
    handle = c_void_p()
    library.CreateTensorWithDataAsOrtValue(
        library.memory_info, memory.address, memory.nbytes, ctypes.addressof(shape), len(shape),
        memory.element.number, ctypes.addressof(handle),
    )  # fmt: skip
    return Value(library, handle.value or 0, memory)


class Session:
    """A session of the C library, released with this."""

    def __init__(self, library: Library, handle: c_void_p, kept: Any = None) -> None:
        self._library, self._handle, self._kept = library, handle, kept
        self._release = library.ReleaseSession

    def __del__(self) -> None:
        self._release(self._handle)

    def input_names(self) -> list[str]:
        """Return the names of the inputs, in order."""
        return self._listed(self._library.SessionGetInputCount, self._library.SessionGetInputName)

    def output_names(self) -> list[str]:
        """Return the names of the outputs, in order."""
        return self._listed(self._library.SessionGetOutputCount, self._library.SessionGetOutputName)

    def signature(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Return what its model takes and gives; of an unknown rank and of a scalar the shape has no sizes.

        Raises:
            RuntimeFailure: If something is no tensor of numbers.
        """
        library = self._library
        return (
            self._described(self.input_names(), library.SessionGetInputTypeInfo),
            self._described(self.output_names(), library.SessionGetOutputTypeInfo),
        )

    def reserve(self, size_bytes: int) -> None:
        """Have its arena hold a free piece of memory of so many bytes.

        Raises:
            RuntimeFailure: If there is none.
        """
        self._library.widen_arena(self._handle, size_bytes, large_pages=False)

    def _described(self, names: Sequence[str], info_of: Any) -> list[TensorSpec]:
        library, specs = self._library, []
        for index, name in enumerate(names):
            info = library.made(info_of, self._handle, index)
            try:
                tensor = library.made(library.CastTypeInfoToTensorInfo, info)  # which is a part of it
                number = library.number(library.GetTensorElementType, tensor) if tensor else 0
                if number not in BY_NUMBER:
                    raise RuntimeFailure(_NOT_IMPLEMENTED, f"'{name}' is no tensor of numbers")
                count = library.number(library.GetDimensionsCount, tensor)
                sizes, words = (c_int64 * count)(), (c_char_p * count)()
                library.GetDimensions(tensor, ctypes.addressof(sizes), count)
                library.GetSymbolicDimensions(tensor, ctypes.addressof(words), count)
                named = [(word or b"").decode() or None for word in words]
            finally:
                library.ReleaseTypeInfo(info)
            shape = tuple(size if size >= 0 else word for size, word in zip(sizes, named, strict=True))
            specs.append(TensorSpec(name, BY_NUMBER[number].type, shape))
        return specs

    def _listed(self, count: Any, name_of: Any) -> list[str]:
        library, names = self._library, []
        allocator = library.made(library.GetAllocatorWithDefaultOptions)
        for index in range(library.number(count, self._handle)):
            name = library.made(name_of, self._handle, index, allocator)
            names.append(ctypes.string_at(name.value or 0).decode())
            library.AllocatorFree(allocator, name)
        return names

    def run(
        self, names: Sequence[str], feeds: Mapping[str, Value], targets: Mapping[str, Value], options: Any = None
    ) -> list[Value]:
        """Return outputs.

        Args:
            names: Names of the outputs wanted, each once.
            feeds: The inputs.
            targets: Tensors that are written, for some of the outputs.
            options: The address of run options, or None.

        Raises:
            RuntimeFailure: If it cannot be run.
        """
        given = (c_void_p * len(feeds))(*(value.handle for value in feeds.values()))
        taken = (c_void_p * len(names))(*(targets[name].handle if name in targets else None for name in names))
        read, made = _names(tuple(feeds)), _names(tuple(names))  # kept here: another thread may empty the cache
        self._library.Run(
            self._handle, options, ctypes.addressof(read), ctypes.addressof(given), len(feeds),
            ctypes.addressof(made), len(names), ctypes.addressof(taken),
        )  # fmt: skip
        return [
            targets[name] if name in targets else Value(self._library, handle)
            for name, handle in zip(names, taken, strict=True)
        ]


@kept
def _names(names: tuple[str, ...]) -> Any:
    """Return names as the C library takes them."""
    return (c_char_p * len(names))(*(name.encode() for name in names))


def open_session(
    library: Library,
    model: str | os.PathLike[str] | bytes,
    entries: Mapping[str, str],
    *,
    threads: int,
    optimize: bool = False,
    background: bool = False,
    large_pages: bool = False,
) -> Session:
    """Return a session.

    Args:
        library: What makes it.
        model: The path of the model's file, or its bytes.
        entries: Configuration entries.
        threads: Inference threads, the calling one among them.
        optimize: Whether the graph is optimised first.
        background: Whether to do the work at low priority; the calling thread keeps it.
        large_pages: Whether it computes in large pages where there is room, in an arena of its own.

    Raises:
        RuntimeFailure: If it cannot be made.
    """
    options = library.made(library.CreateSessionOptions)
    kept = None
    try:
        library.SetSessionGraphOptimizationLevel(options, ENABLE_ALL if optimize else DISABLE_ALL)
        library.SetSessionLogSeverityLevel(options, FATAL)
        library.SetIntraOpNumThreads(options, threads)
        library.DisableMemPattern(options)
        for key, value in entries.items():
            library.AddSessionConfigEntry(options, key.encode(), value.encode())
        if background:
            kept = _at_low_priority(library, options, threads - 1)
        if isinstance(model, bytes):
            made = library.made(library.CreateSessionFromArray, library.env, model, len(model), options)
        else:
            path = _path(model, sys.platform)
            made = library.made(library.CreateSession, library.env, ctypes.addressof(path), options)
        session = Session(library, made, kept)
        if large_pages:
            try:
                library.widen_arena(made, _ARENA_BYTES, large_pages=True)
            except RuntimeFailure:  # there is no room for it: the model may have enough
                pass
        return session
    finally:
        library.ReleaseSessionOptions(options)


def written_session(
    library: Library,
    model: str | os.PathLike[str],
    target: str | os.PathLike[str],
    entries: Mapping[str, str],
    *,
    level: int,
) -> Session:
    """Return a session that has written its graph, as it is optimised, to a file.

    Args:
        library: What makes it.
        model: The model's file.
        target: The file to write.
        entries: Configuration entries.
        level: A `GraphOptimizationLevel`.

    Raises:
        RuntimeFailure: If it cannot be made, or the file not be written.
    """
    options = library.made(library.CreateSessionOptions)
    try:
        library.SetSessionGraphOptimizationLevel(options, level)
        library.SetSessionLogSeverityLevel(options, FATAL)
        paths = [_path(path, sys.platform) for path in (model, target)]
        library.SetOptimizedModelFilePath(options, ctypes.addressof(paths[1]))
        for key, value in entries.items():
            library.AddSessionConfigEntry(options, key.encode(), value.encode())
        made = library.made(library.CreateSession, library.env, ctypes.addressof(paths[0]), options)
        return Session(library, made)
    finally:
        library.ReleaseSessionOptions(options)


def usual_session(
    library: Library, path: str | os.PathLike[str], entries: Mapping[str, str], *, optimize: bool
) -> Session:
    """Return a session as onnxruntime makes it by itself: of threads, memory and logging nothing is said.

    Args:
        library: What makes it.
        path: The model's file.
        entries: Configuration entries; without any, weights are rearranged for speed.
        optimize: Whether the graph is optimised first.

    Raises:
        RuntimeFailure: If it cannot be made.
    """
    options = library.made(library.CreateSessionOptions)
    try:
        if not optimize:
            library.SetSessionGraphOptimizationLevel(options, DISABLE_ALL)
        for key, value in entries.items():
            library.AddSessionConfigEntry(options, key.encode(), value.encode())
        text = _path(path, sys.platform)
        return Session(library, library.made(library.CreateSession, library.env, ctypes.addressof(text), options))
    finally:
        library.ReleaseSessionOptions(options)


def _path(path: str | os.PathLike[str], platform: str) -> Any:
    """Return a path as ORTCHAR_T: wide characters on Windows, the system's bytes elsewhere."""
    if platform == "win32":
        return ctypes.create_unicode_buffer(os.fspath(path))
    return ctypes.create_string_buffer(os.fsencode(path))


_CREATE = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p)
_JOIN = ctypes.CFUNCTYPE(None, c_void_p)


def _at_low_priority(library: Library, options: c_void_p, workers: int) -> Any:
    """Have a session rearrange its weights at low priority, and infer at the usual one; return what it must keep.

    Threads take over the priority of the one that starts them. The runtime asks for its inference threads before it
    rearranges weights; they are started here, and after the last of them the priority falls.
    """
    if not sys.platform.startswith("linux"):  # elsewhere a thread has no niceness of its own
        return None
    system = ctypes.CDLL(None)
    left = [workers]

    def lower() -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, _thread.get_native_id(), 19)
        except OSError:
            pass

    def create(_: Any, work: Any, argument: Any) -> int | None:
        thread = c_void_p()
        failed = system.pthread_create(ctypes.byref(thread), None, c_void_p(work), c_void_p(argument))
        left[0] -= 1
        if left[0] == 0:
            lower()
        return None if failed else thread.value

    def join(thread: Any) -> None:
        system.pthread_join(c_void_p(thread), None)

    if workers <= 0:
        lower()
        return None
    functions: tuple[Any, Any] = _CREATE(create), _JOIN(join)
    library.SessionOptionsSetCustomCreateThreadFn(options, ctypes.cast(functions[0], c_void_p))
    library.SessionOptionsSetCustomJoinThreadFn(options, ctypes.cast(functions[1], c_void_p))
    return functions
