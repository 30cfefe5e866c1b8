"""The engine of onnxruntime's Python module: for what is said in its objects, and for what is no tensor of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime as ort

from splitload.bundle.manifest import TensorSpec
from splitload.runtime import session
from splitload.runtime.arena import empty_arena, widen_arena
from splitload.runtime.boundaries import Boundaries, in_arrays
from splitload.runtime.canary import in_module
from splitload.runtime.feeds import given_back, to_ort

if TYPE_CHECKING:
    from splitload.runtime.options import CallerOptions
    from splitload.runtime.session import StageIO


class PythonEngine:
    """See `splitload.runtime.engine.Engine`; values are `onnxruntime.OrtValue` or what `run` of a session takes.

    Args:
        caller: What the caller asks of sessions.
    """

    name: Literal["library", "python"] = "python"
    version: str = ort.__version__

    def __init__(self, caller: CallerOptions) -> None:
        self._caller = caller

    def open(
        self, graph: str, *, prepack: bool, mapped: bool, optimize: bool, background: bool, share_memory: bool
    ) -> Any:
        """Return a session on a stage's graph file, with the caller's options."""
        return session.open_session(
            graph, prepack=prepack, mapped=mapped, optimize=optimize, background=background,
            options=self._caller.copy(), share_memory=share_memory,
        )  # fmt: skip

    def names(self, session: Any) -> tuple[set[str], set[str]]:
        """Return the names of the inputs and of the outputs of a session."""
        reads, gives = ({argument.name for argument in each} for each in (session.get_inputs(), session.get_outputs()))
        return reads, gives

    def value(self, spec: TensorSpec | None, given: Any) -> Any:
        """Return an array as an OrtValue, and all else as it is."""
        value = to_ort(ort, given, None if spec is None else spec.type)
        if spec is None and not (isinstance(value, ort.OrtValue | np.ndarray) or (isinstance(value, dict) and value)):
            raise RuntimeError(f"Unable to handle object of type {type(given)}")  # before the name, as a session
        return value

    def described(self, value: Any) -> tuple[str, Sequence[int]] | None:
        """Return the type and shape of an OrtValue or of an array of strings."""
        if isinstance(value, ort.OrtValue):
            return value.data_type(), value.shape() if value.is_tensor() else ()
        if isinstance(value, np.ndarray) and value.shape != ():
            return "tensor(string)", value.shape
        return None  # a list or scalar: the runtime knows which it takes

    def boundaries(self, otherwise: set[str]) -> Boundaries:
        """Return memory for what the stages of a run hand on."""
        return in_arrays(otherwise)

    def run_stage(
        self,
        session_: Any,
        stage: StageIO,
        needed: list[str],
        values: Mapping[str, Any],
        run_options: Any,
        *,
        keep: bool,
        boundaries: Boundaries,
    ) -> list[Any]:
        """Return the outputs that are needed."""
        return session.run_stage(ort, session_, stage, needed, values, run_options, keep=keep, boundaries=boundaries)

    def answer(self, value: Any) -> Any:
        """Return a tensor as an array, anything else as it is."""
        return session.to_python(ort, value)

    def given_back(self, spec: TensorSpec, value: Any) -> Any:
        """Return a copy of what was given, of the input's type."""
        return given_back(ort, spec, value)

    def canary(self, graph: str) -> list[float]:
        """Return what a canary gives."""
        return in_module(graph, self._caller.own_threads)

    def reserve(self, session: Any, size_bytes: int) -> None:
        """Have the arena of all stages hold a free piece of so many bytes."""
        widen_arena(ort, size_bytes, own_threads=self._caller.own_threads)

    def empty_arena(self) -> None:
        """Give back to the system what nobody uses of the arena of all stages."""
        empty_arena(ort, own_threads=self._caller.own_threads)
