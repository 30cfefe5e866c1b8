"""onnxruntime's C library: found beside the Python module or where the user says, opened, and called by name."""

from __future__ import annotations

import _thread
import ctypes
import os
from ctypes import c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p

from splitload.runtime.capi.early import environment
from splitload.runtime.capi.find import NoLibraryError, beside_module, bring_errors, named_path
from splitload.runtime.capi.pages import in_large_pages
from splitload.runtime.capi.table import API_VERSION, FUNCTIONS
from splitload.runtime.forks import making_session
from splitload.runtime.settings import DISABLE_ALL, ENVIRONMENT
from splitload.runtime.tiny import TINY_MODEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_DEVICE_ALLOCATOR, _ARENA_ALLOCATOR, _DEFAULT_MEMORY = 0, 1, 0

# Arguments of the functions that are used; pointers of all kinds are addresses. Those in the first table return a
# status, which is null where all went well.
_RETURN_STATUS: dict[str, tuple[Any, ...]] = {
    "AddRunConfigEntry": (c_void_p, c_char_p, c_char_p),
    "AddSessionConfigEntry": (c_void_p, c_char_p, c_char_p),
    "CastTypeInfoToTensorInfo": (c_void_p, c_void_p),
    "CreateAndRegisterAllocator": (c_void_p, c_void_p, c_void_p),
    "CreateArenaCfgV2": (c_void_p, c_void_p, c_size_t, c_void_p),
    "CreateCpuMemoryInfo": (c_int, c_int, c_void_p),
    "CreateEnv": (c_int, c_char_p, c_void_p),
    "CreateRunOptions": (c_void_p,),
    "CreateSession": (c_void_p, c_void_p, c_void_p, c_void_p),
    "CreateSessionFromArray": (c_void_p, c_char_p, c_size_t, c_void_p, c_void_p),
    "CreateSessionOptions": (c_void_p,),
    "CreateTensorWithDataAsOrtValue": (c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_int, c_void_p),
    "DisableMemPattern": (c_void_p,),
    "AllocatorAlloc": (c_void_p, c_size_t, c_void_p),
    "AllocatorFree": (c_void_p, c_void_p),
    "CreateAllocator": (c_void_p, c_void_p, c_void_p),
    "GetAllocatorWithDefaultOptions": (c_void_p,),
    "GetDimensions": (c_void_p, c_void_p, c_size_t),
    "GetDimensionsCount": (c_void_p, c_void_p),
    "GetSymbolicDimensions": (c_void_p, c_void_p, c_size_t),
    "GetTensorElementType": (c_void_p, c_void_p),
    "GetTensorMutableData": (c_void_p, c_void_p),
    "GetTensorTypeAndShape": (c_void_p, c_void_p),
    "Run": (c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p),
    "SessionOptionsSetCustomCreateThreadFn": (c_void_p, c_void_p),
    "SessionOptionsSetCustomJoinThreadFn": (c_void_p, c_void_p),
    "SessionGetInputCount": (c_void_p, c_void_p),
    "SessionGetInputName": (c_void_p, c_size_t, c_void_p, c_void_p),
    "SessionGetInputTypeInfo": (c_void_p, c_size_t, c_void_p),
    "SessionGetOutputCount": (c_void_p, c_void_p),
    "SessionGetOutputName": (c_void_p, c_size_t, c_void_p, c_void_p),
    "SessionGetOutputTypeInfo": (c_void_p, c_size_t, c_void_p),
    "SetIntraOpNumThreads": (c_void_p, c_int),
    "SetOptimizedModelFilePath": (c_void_p, c_void_p),
    "SetSessionGraphOptimizationLevel": (c_void_p, c_int),
    "SetSessionLogSeverityLevel": (c_void_p, c_int),
}
_OTHERS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "GetErrorCode": (c_int, (c_void_p,)),
    "GetErrorMessage": (c_char_p, (c_void_p,)),
    **{
        f"Release{what}": (None, (c_void_p,))
        for what in (
            "Allocator",
            "ArenaCfg",
            "MemoryInfo",
            "RunOptions",
            "Session",
            "SessionOptions",
            "Status",
            "TensorTypeAndShapeInfo",
            "TypeInfo",
            "Value",
        )
    },
}
# Source: the enumeration `OrtErrorCode`, and the exceptions of the Python module in the same order
_ERRORS = (
    "", "Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException", "InvalidProtobuf",
    "ModelLoaded", "NotImplemented", "InvalidGraph", "EPFail",
)  # fmt: skip
_WORDS = (
    "", "FAIL", "INVALID_ARGUMENT", "NO_SUCHFILE", "NO_MODEL", "ENGINE_ERROR", "RUNTIME_EXCEPTION", "INVALID_PROTOBUF",
    "MODEL_LOADED", "NOT_IMPLEMENTED", "INVALID_GRAPH", "EP_FAIL",
)  # fmt: skip


class RuntimeFailure(Exception):
    """What the runtime says went wrong.

    Args:
        code: An `OrtErrorCode`.
        message: For people.
    """

    def __init__(self, code: int, message: str) -> None:
        self.code = code if 0 < code < len(_ERRORS) else 1
        super().__init__(message)

    def error(self) -> Exception:
        """Return what the Python module raises for it."""
        return runtime_error(_ERRORS[self.code], f"[ONNXRuntimeError] : {self.code} : {_WORDS[self.code]} : {self}")


class module_errors:
    """Runs a block whose `RuntimeFailure` is raised as what the Python module raises for it."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeFailure):
            raise error.error() from None


def runtime_error(name: str, message: str) -> Exception:
    """Return an error of the runtime's Python module, or a `RuntimeError` where that is not installed.

    Args:
        name: Name of its class, such as "InvalidArgument".
        message: For people.
    """
    try:
        return getattr(bring_errors(), name)(message)  # type: ignore[no-any-return]
    except ImportError:
        return RuntimeError(message)


class Library:
    """The C library, whose functions are its methods: each raises `RuntimeFailure` where the runtime returns a status.

    Attributes:
        path: Its file.
        version: Version of onnxruntime, such as "1.32.0".

    Args:
        path: Its file.

    Raises:
        NoLibraryError: If it cannot be opened, or is older than the table of functions.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        base = _base_of(path)
        self.version = base.GetVersionString().decode()
        address = base.GetApi(API_VERSION)
        if not address:
            raise NoLibraryError(f"'{path}' is onnxruntime {self.version}, without version {API_VERSION} of the C API")
        self._table = (c_void_p * len(FUNCTIONS)).from_address(address)
        self._lock = _thread.allocate_lock()
        self._env: c_void_p | None = None
        self._is_awaited = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a function of the C API, typed when it is first asked for."""
        address: Any = self._table[FUNCTIONS.index(name)] if name in FUNCTIONS else None
        if name in _RETURN_STATUS:
            function = ctypes.CFUNCTYPE(c_void_p, *_RETURN_STATUS[name])(address)
            function.errcheck = self._checked  # type: ignore[assignment]
        elif name in _OTHERS:
            returns, takes = _OTHERS[name]
            function = ctypes.CFUNCTYPE(returns, *takes)(address)
        else:
            raise AttributeError(name)
        setattr(self, name, function)
        return function

    def made(self, create: Callable[..., Any], *arguments: Any) -> c_void_p:
        """Return what a function writes to the address that is its last argument."""
        made = c_void_p()
        create(*arguments, ctypes.addressof(made))
        return made

    def number(self, ask: Callable[..., Any], *arguments: Any) -> int:
        """Return the number that a function writes to the address that is its last argument."""
        number = c_int64()
        ask(*arguments, ctypes.addressof(number))
        return number.value

    def set_up(self) -> None:
        """Make the environment and, unless somebody waits for it already, what the first session makes for all others.

        It makes the tables of operators and kernels, in 4 to 7 ms; the session made here is dropped.
        """
        env = self._made_once()
        if self._is_awaited:
            return
        options = self.made(self.CreateSessionOptions)
        try:
            self.SetIntraOpNumThreads(options, 1)
            self.SetSessionGraphOptimizationLevel(options, DISABLE_ALL)
            self.ReleaseSession(self.made(self.CreateSessionFromArray, env, TINY_MODEL, len(TINY_MODEL), options))
        finally:
            self.ReleaseSessionOptions(options)

    @property
    def env(self) -> c_void_p:
        """The environment of all sessions, made once a process, in 15 to 20 ms."""
        self._is_awaited = True
        return self._made_once()

    @property
    def memory_info(self) -> c_void_p:
        """What says that memory is the processor's; made with the environment."""
        self._made_once()
        return self._memory_info

    def _made_once(self) -> c_void_p:
        if self._env is not None:
            return self._env
        with making_session(), self._lock:
            if self._env is None:
                self._memory_info = self.made(self.CreateCpuMemoryInfo, _DEVICE_ALLOCATOR, _DEFAULT_MEMORY)
                begun = environment(self.path)
                self._env = c_void_p(begun) if begun else self.made(self.CreateEnv, *ENVIRONMENT)
            return self._env

    def register_arena(self, settings: dict[str, int]) -> None:
        """Have an arena of the environment's for sessions that ask for it.

        Args:
            settings: Its configuration, see `OrtApi::CreateArenaCfgV2`.
        """
        keys = (c_char_p * len(settings))(*(key.encode() for key in settings))
        values = (c_size_t * len(settings))(*settings.values())
        config = self.made(self.CreateArenaCfgV2, ctypes.addressof(keys), ctypes.addressof(values), len(settings))
        try:
            info = self.made(self.CreateCpuMemoryInfo, _ARENA_ALLOCATOR, _DEFAULT_MEMORY)
            try:
                self.CreateAndRegisterAllocator(self.env, info, config)
            finally:
                self.ReleaseMemoryInfo(info)
        finally:
            self.ReleaseArenaCfg(config)

    def widen_arena(self, session: c_void_p, size_bytes: int, *, large_pages: bool) -> None:
        """Have the arena of a session hold a free piece of memory.

        Args:
            session: Its arena may be one of its own.
            size_bytes: How large the piece is; nobody touches it.
            large_pages: Whether it comes in large pages once it is touched.
        """
        info = self.made(self.CreateCpuMemoryInfo, _ARENA_ALLOCATOR, _DEFAULT_MEMORY)
        try:
            allocator = self.made(self.CreateAllocator, session, info)
            try:
                block = self.made(self.AllocatorAlloc, allocator, size_bytes)
                if large_pages:
                    in_large_pages(block.value or 0, (block.value or 0) + size_bytes)
                self.AllocatorFree(allocator, block)  # to the arena, which keeps it
            finally:
                self.ReleaseAllocator(allocator)
        finally:
            self.ReleaseMemoryInfo(info)

    def _checked(self, status: int | None, function: Any, arguments: Any) -> None:
        if status is not None:
            try:
                raise RuntimeFailure(self.GetErrorCode(status), self.GetErrorMessage(status).decode(errors="replace"))
            finally:
                self.ReleaseStatus(status)


class _ApiBase(ctypes.Structure):
    """Source: `OrtApiBase` of onnxruntime_c_api.h."""

    _fields_ = (
        ("GetApi", ctypes.CFUNCTYPE(c_void_p, c_uint32)),
        ("GetVersionString", ctypes.CFUNCTYPE(c_char_p)),
    )


def _entry(library: Any) -> Any:
    library.OrtGetApiBase.restype = ctypes.POINTER(_ApiBase)
    return library.OrtGetApiBase().contents


def _base_of(path: str) -> Any:
    try:
        return _entry(ctypes.CDLL(path))
    except (OSError, AttributeError, ValueError) as error:  # ValueError: of a name with a null, or that is no UTF-8
        raise NoLibraryError(f"'{path}' cannot be opened as onnxruntime's C library: {error}") from error


def version_of(path: str) -> str:
    """Return the version of onnxruntime that a C library is of, though it may be too old to be used.

    Raises:
        NoLibraryError: If it cannot be opened.
    """
    version: str = _base_of(path).GetVersionString().decode()
    return version


_opened: dict[str, Library] = {}
_opening = _thread.allocate_lock()


def library(named: str | os.PathLike[str] | None = None) -> Library:
    """Return the library that is named, by the caller or by SPLITLOAD_ORT_LIBRARY, or the one beside the Python module.

    Raises:
        NoLibraryError: If there is none that can be used.
    """
    path = named_path(named) or beside_module()
    with making_session(), _opening:
        if path not in _opened:
            _opened[path] = Library(path)
        return _opened[path]


def set_up(path: str) -> None:
    """Make what all sessions of a library share; whoever needs it will meet what goes wrong.

    Args:
        path: Its file.
    """
    try:
        library(path).set_up()
    except Exception:  # noqa: S110 - of the library, or of who audits calls
        pass
