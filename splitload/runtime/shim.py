"""`splitload.InferenceSession` and `IOBinding`, for clients: a bundle where a model has one, else a plain session."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from splitload.base.errors import BundleError, UsageError
from splitload.bundle.beside import find
from splitload.runtime.loader import ParallelLoader
from splitload.runtime.stock import session_class
from splitload.runtime.warmup import warm_up

_log = logging.getLogger("splitload")
_Stock: Any = session_class()
warm_up()
# What a stock session keeps in private attributes that clients read all the same, and how it is told.
_BEHIND = {
    "_inputs_meta": "get_inputs",
    "_outputs_meta": "get_outputs",
    "_overridable_initializers": "get_overridable_initializers",
    "_model_meta": "get_modelmeta",
    "_providers": "get_providers",
    "_provider_options": "get_provider_options",
    "_sess_options": "get_session_options",
}


class InferenceSession(_Stock):  # type: ignore[misc]
    """An `onnxruntime.InferenceSession` that loads `model.splitload` for `model.onnx` where that lies beside it.

    It is made and used like the class that it derives from, so that it can stand in for it before a client library is
    imported: `onnxruntime.InferenceSession = splitload.InferenceSession`. A bundle of another model is not taken, nor
    one that cannot do what is asked (another provider, profiling): then it is a plain session, and the logger
    "splitload" has a warning. Where it loads a bundle, the rest of `ParallelLoader` (`timeline`, `wait`) is there too.

    The answers are the model's: a personalized last stage is loaded only where `tail` asks for it. Unlike onnxruntime's
    class it raises for an argument that it does not know.

    Args:
        path_or_bytes: Path or bytes of an ONNX model, or the folder of a bundle.
        sess_options: See `onnxruntime.InferenceSession`.
        providers: Likewise.
        provider_options: Likewise.
        tail: Name of the personalized last stage to load; None for the one that the bundle was built with.
        enable_fallback: See `onnxruntime.InferenceSession`.
        read_config_from_model: Likewise.
        disabled_optimizers: Likewise.

    Attributes:
        bundles: Folders of bundles for models that have none beside them, or are given as bytes; of the class, so that
            a subclass may set its own.
        loader: The `ParallelLoader` behind it, or None for a plain session.
        bundle: The folder of the bundle that it loads, or None.
        reason: Why it loads the bundle or is a plain session, in one line.

    Raises:
        SplitloadError: If a bundle is given that cannot be loaded, or a tail is asked for that cannot be had; a plain
            session raises what onnxruntime does.
    """

    bundles: ClassVar[Sequence[str | os.PathLike[str]]] = ()

    def __init__(
        self,
        path_or_bytes: Any,
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Any] | None = None,
        *,
        tail: str | None = None,
        enable_fallback: int = 1,
        read_config_from_model: int = 0,
        disabled_optimizers: Iterable[str] | None = None,
    ) -> None:
        self.loader: ParallelLoader | None = None
        self.bundle: Path | None = None
        given: dict[str, Any] = {
            "enable_fallback": enable_fallback,
            "read_config_from_model": read_config_from_model,
            "disabled_optimizers": disabled_optimizers,
        }
        if not isinstance(path_or_bytes, str | os.PathLike | bytes):  # a stock session says so
            super().__init__(path_or_bytes, sess_options, providers, provider_options, **given)
        match = find(path_or_bytes, self.bundles)
        self.reason, refused = match.reason, match.refused
        if match.bundle is not None:
            try:
                self.loader = ParallelLoader(
                    match.bundle, sess_options, providers, provider_options, tail=tail, **given
                )
                self.bundle = match.bundle
                self.reason += _last_stage(self.loader, tail)
            except (UsageError, BundleError) as error:
                if tail is not None or (not isinstance(path_or_bytes, bytes) and match.bundle == Path(path_or_bytes)):
                    raise  # no model can be opened instead
                self.reason, refused = f"'{match.bundle}' is not taken: {error}", True
        if self.loader is None and tail is not None:
            raise UsageError(f"the tail '{tail}' is part of a bundle, and a plain session would be made: {self.reason}")
        what = "plain session" if self.loader is None else "bundle"
        of = "bytes" if isinstance(path_or_bytes, bytes) else path_or_bytes
        _log.log(logging.WARNING if refused else logging.INFO, "%s for %s: %s", what, of, self.reason)
        if self.loader is None:
            super().__init__(path_or_bytes, sess_options, providers, provider_options, **given)
        else:  # where a stock session has these
            self._model_path = None if isinstance(path_or_bytes, bytes) else os.fspath(path_or_bytes)
            self._model_bytes = path_or_bytes if isinstance(path_or_bytes, bytes) else None

    def __getattr__(self, name: str) -> Any:
        loader = self.__dict__.get("loader")
        if loader is None:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return getattr(loader, _BEHIND[name])() if name in _BEHIND else getattr(loader, name)


class IOBinding:
    """What stands in for `onnxruntime.IOBinding` in clients that make bindings by that name.

    `IOBinding(session)` is `session.io_binding()`: the runtime's own for a plain session, a `Binding` for a bundle.
    """

    def __new__(cls, session: Any) -> Any:
        """Return the binding."""
        return session.io_binding()


def _last_stage(loader: ParallelLoader, tail: str | None) -> str:
    """Return the end of the reason that names the last stage, where a bundle has, or may have, personalized ones."""
    if loader.tail is not None:
        return f"; its last stage is version {loader.tail.version} of the tail '{loader.tail.name}'"
    if loader.manifest.training is None:
        return ""
    from splitload.bundle.tails import names

    others = [] if tail is not None else names(Path(loader._folder))
    hint = f", not a personalized one; tail=NAME takes one of: {', '.join(others)}" if others else ""
    return f"; its last stage is the one it was built with{hint}"


def _through(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that asks the loader where there is one, and the plain session otherwise."""

    @functools.wraps(plain)
    def call(self: InferenceSession, *values: Any, **named: Any) -> Any:
        return plain(self, *values, **named) if self.loader is None else getattr(self.loader, name)(*values, **named)

    return call


for _name in dir(_Stock):
    if not _name.startswith("_"):
        setattr(InferenceSession, _name, _through(_name, getattr(_Stock, _name)))
