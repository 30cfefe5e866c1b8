"""What the caller of a drop-in asks of a session: options, providers and their options, taken or refused in one line.

What `onnxruntime.SessionOptions` holds cannot all be read from it. A session of one node is made with it, the
*stand-in*: it hands out copies of the options, and shows in its own inputs which open sizes they fix. It also answers
whatever depends on the options and the provider alone, and not on the model.
"""

from __future__ import annotations

import _thread
import os

from splitload.base.errors import UsageError
from splitload.bundle.manifest import Manifest, TensorSpec
from splitload.runtime.forks import making_session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

CPU = "CPUExecutionProvider"
_HARMLESS = (CPU, "AzureExecutionProvider")  # the second takes no operator of ONNX; every wheel for the CPU has both
# Source: onnx/defs/schema.h, the denotations of the standard
_DENOTATIONS = (
    "DATA_BATCH", "DATA_CHANNEL", "DATA_TIME", "DATA_FEATURE", "FILTER_IN_CHANNEL", "FILTER_OUT_CHANNEL",
    "FILTER_SPATIAL",
)  # fmt: skip
_FLOAT, _IR_VERSION, _OPSET = 1, 7, 13


class CallerOptions:
    """The `sess_options`, `providers`, `provider_options` and further arguments of `onnxruntime.InferenceSession`.

    Attributes:
        given: The caller's `sess_options`, or None.
        needs_module: Whether anything is said in words of onnxruntime's Python module.
        own_threads: Whether sessions have threads of their own, or the process has a pool that all must use.
        providers: Names of the execution providers, as a stock session lists them.
        prepacks: Whether weights may be rearranged for speed.
        stand_in_made: The stand-in, or None where it was not needed yet.

    Raises:
        UsageError: If something is asked for that a bundle cannot do; the message says what to do.
        ValueError: If a stock session would raise it.
        MissingPackageError: If the Python module is needed and cannot be imported.
    """

    def __init__(
        self,
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Mapping[Any, Any]] | None = None,
        *,
        enable_fallback: Any = 1,
        read_config_from_model: Any = 0,
        disabled_optimizers: Any = None,
    ) -> None:
        self.needs_module = sess_options is not None or providers not in (None, [CPU]) or bool(provider_options)
        self.providers = checked_providers(providers, provider_options)
        if int(read_config_from_model) == 1:
            raise UsageError("read_config_from_model=1 needs the model's own file; give the settings as sess_options")
        if disabled_optimizers:
            raise UsageError(
                "disabled_optimizers comes too late, a bundle's graph was optimised when it was written; leave it out, "
                "or open the model with a stock session"
            )
        self.falls_back = int(enable_fallback) == 1
        self.given = sess_options
        self.own_threads = sess_options is None or bool(sess_options.use_per_session_threads)
        self.stand_in_made: Any = None
        self._sizes: dict[str, int] = {}
        if sess_options is not None:
            _refuse(sess_options, providers)
            _tell(sess_options)
        self.prepacks = sess_options is None or _prepacks(sess_options)

    @property
    def stand_in(self) -> Any:
        """A session of one node with these options and on this provider."""
        if self.stand_in_made is None:
            self.stand_in_made = self._make(())
        return self.stand_in_made

    def copy(self) -> Any:
        """Return options to change, with all that the caller set; None where nothing was given."""
        return None if self.given is None else self.stand_in._sess.session_options

    def fixed(self, manifest: Manifest) -> Manifest:
        """Return the manifest with the open sizes that the caller fixed, as a stock session then shows them.

        Raises:
            UsageError: If sizes are fixed by what they denote.
        """
        if self.given is None:
            return manifest
        names = sorted({size for spec in manifest.inputs for size in spec.shape or () if isinstance(size, str)})
        self.stand_in_made = self._make(names)
        (shown,) = (argument.shape for argument in self.stand_in_made.get_inputs())
        if any(isinstance(size, int) for size in shown[len(names) :]):
            raise UsageError(
                "add_free_dimension_override_by_denotation cannot be followed, a bundle keeps not what sizes denote; "
                "use add_free_dimension_override_by_name"
            )
        self._sizes = {name: size for name, size in zip(names, shown, strict=False) if isinstance(size, int)}
        if not self._sizes:
            return manifest
        return manifest._replace(
            inputs=tuple(self._fix(spec) for spec in manifest.inputs),
            outputs=tuple(self._fix(spec) for spec in manifest.outputs),
        )

    def _fix(self, spec: TensorSpec) -> TensorSpec:
        if spec.shape is None:
            return spec
        sizes = self._sizes
        return spec._replace(
            shape=tuple(sizes.get(each, each) if isinstance(each, str) else each for each in spec.shape)
        )

    def _make(self, names: Sequence[str]) -> Any:
        """Return a session of one node whose input has the open sizes `names` and one of each denotation."""
        options: dict[str, Any] = {} if self.given is None else {"sess_options": self.given}
        from splitload.runtime.stock import session_class

        session = session_class()
        try:
            with making_session():
                return session(identity(names), providers=self.providers, enable_fallback=0, **options)
        except Exception as error:  # onnxruntime has no common root for its errors
            raise UsageError(
                f"onnxruntime does not take these sess_options ({' '.join(str(error).split())[:200]}); weights and "
                "providers are fixed in a bundle, thread counts, logging and session entries are free"
            ) from error


def check_arguments(bundle: object, threads: object, specialize: object) -> None:
    """Raise `UsageError` unless these arguments of `ParallelLoader` can be meant."""
    if not isinstance(bundle, str | os.PathLike):
        raise UsageError(
            f"a bundle is the path of a folder, not {type(bundle).__name__}; splitload.InferenceSession takes the "
            "bytes of a model"
        )
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise UsageError(f"threads must be a whole number of at least 1, it is {threads!r}")
    if specialize not in (None, "background"):
        raise UsageError(f"specialize takes 'background' or None, not {specialize!r}")


def waited_for(until: object, timeout: float | None) -> tuple[str, float | None]:
    """Return what `ParallelLoader.wait` waits for, and for how many seconds at most, None for no limit.

    Raises:
        UsageError: If its arguments cannot be meant.
    """
    if isinstance(until, int | float):
        timeout, until = until, "loaded"
    if until not in ("loaded", "upgraded", "specialized"):
        raise UsageError(f"wait takes 'loaded', 'upgraded' or 'specialized', not {until!r}")
    return str(until), None if timeout is None else min(timeout, _thread.TIMEOUT_MAX)  # no float holds some numbers


def checked_providers(
    providers: Sequence[Any] | None, provider_options: Sequence[Mapping[Any, Any]] | None = None
) -> list[str]:
    """Return the providers that a stock session would list, if the processor is what it would use.

    A provider that this onnxruntime does not have is warned of and left out, as a stock session does.

    Raises:
        UsageError: If one would be used that a bundle is not made for, or the processor is not among them.
        ValueError: If they are no list of names, or not as many options.
        MissingPackageError: If the Python module, which knows the others, cannot be imported.
    """
    if providers in (None, [CPU]) and not provider_options:
        return [CPU]
    from splitload.runtime.stock import python_module

    python_module(f"another execution provider than {CPU}, or options of one")
    from onnxruntime.capi import onnxruntime_inference_collection as stock

    available = stock.C.get_available_providers()
    if isinstance(providers, str):
        raise UsageError(f"providers is a list, such as [{CPU!r}], not the name {providers!r}")
    names, _ = stock.check_and_normalize_provider_args(providers, provider_options, available)
    usable = [name for name in names if name in available]
    if others := [name for name in usable if name not in _HARMLESS]:
        raise UsageError(
            f"a bundle runs on the processor, not on {', '.join(others)}; give providers=[{CPU!r}], or open the model "
            "with a stock session"
        )
    if names and not usable:
        raise UsageError(f"none of the providers {names} is here, a bundle needs {CPU!r} among them")
    return usable if CPU in usable else [*usable, CPU]


def _prepacks(options: Any) -> bool:
    from splitload.runtime.session import config_entry

    return config_entry(options, "session.disable_prepacking") != "1"


def _refuse(options: Any, providers: Sequence[Any] | None) -> None:
    """Raise for what several sessions on parts of a model cannot do."""
    if options.enable_profiling:
        raise UsageError(
            "enable_profiling would write a file for each stage; `timeline` tells when each stage loaded and ran, and "
            "a stock session profiles the model"
        )
    if options.optimized_model_filepath:
        raise UsageError(
            "optimized_model_filepath cannot be written, a bundle's graph was optimised when it was made; open the "
            "model with a stock session"
        )
    if providers is None and hasattr(options, "has_providers") and options.has_providers():
        raise UsageError(f"sess_options chooses providers; a bundle runs on the processor, give providers=[{CPU!r}]")


def _tell(options: Any) -> None:
    """Log that a level of optimisation was asked for which a bundle's graph does not have."""
    if options.graph_optimization_level.name not in ("ORT_ENABLE_ALL", "ORT_ENABLE_LAYOUT"):
        import logging

        level = options.graph_optimization_level.name
        logging.getLogger("splitload").info("%s has no effect: the graph was optimised when the bundle was made", level)


def identity(names: Sequence[str]) -> bytes:
    """Return an ONNX model `y = Identity(x)` whose sizes are named `names`, then one of each denotation.

    Written byte by byte, for a device has no onnx. Source: the field numbers of onnx/onnx.proto.
    """
    sizes = [_field(2, name.encode()) for name in names]
    sizes += [_field(3, word.encode()) + _field(2, f"splitload {word}".encode()) for word in _DENOTATIONS]
    shape = b"".join(_field(1, size) for size in sizes)
    kind = _field(1, _number(1, _FLOAT) + _field(2, shape))
    value_x, value_y = (_field(1, name) + _field(2, kind) for name in (b"x", b"y"))
    node = _field(1, b"x") + _field(2, b"y") + _field(4, b"Identity")
    graph = _field(1, node) + _field(2, b"stand-in") + _field(11, value_x) + _field(12, value_y)
    return _number(1, _IR_VERSION) + _field(7, graph) + _field(8, _number(2, _OPSET))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    low = b""
    while value > 127:
        low += bytes([value & 127 | 128])
        value >>= 7
    return low + bytes([value])
