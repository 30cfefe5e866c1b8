"""The runtime that a graph is made for: what onnxruntime alone can do with it, on the processor that will run it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from splitload.base.errors import ModelError, SplitloadError, UsageError
from splitload.bundle.manifest import StageEntry, TensorSpec

Level = Literal["all", "basic", "none"]  # how far onnxruntime optimises; "all" writes its own operators and layouts
# a graph as it is, on one thread; the same with weights rearranged; a stock session, which optimises
How = Literal["plain", "packed", "stock"]


ROUNDS = 11  # of a race


class Refusal(Exception):
    """What onnxruntime says against a model; it has no common root for its errors."""


class Beside(NamedTuple):
    """A model in memory whose weights lie in files.

    Attributes:
        folder: Where the files lie.
        data: The ONNX model.
    """

    folder: Path
    data: bytes


Model = Path | Beside


class Signature(NamedTuple):
    """What a model takes and gives, as onnxruntime says it; an unknown rank and a scalar have no sizes both.

    Attributes:
        inputs: Its inputs, without those that have a default.
        outputs: Its outputs.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class GraphPiece(NamedTuple):
    """Some nodes of a graph as a model of their own.

    Attributes:
        data: The ONNX model.
        reads: Its inputs.
        makes: Its outputs.
        kept: Names of all values that later pieces read.
    """

    data: bytes
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    kept: tuple[str, ...]


class Race(NamedTuple):
    """How two graphs compare.

    Attributes:
        alike: Whether they compute the same within rounding.
        changed_s: The least seconds of a run of the first, in turns with the other; 0 where they are not alike.
        original_s: Those of the second.
    """

    alike: bool
    changed_s: float = 0.0
    original_s: float = 0.0


class GraphRuntime(Protocol):
    """An onnxruntime on a processor: this process's, see `here`, or that of a device.

    A native graph is made here where the device's processor, by `cpu_architecture`, and version of onnxruntime are this
    machine's: the same optimiser writes the same graph. Otherwise it is made there, by the same code at the desk. What
    onnxruntime refuses is a `Refusal`; any other error is of the device, or of whoever asks.
    """

    def __hash__(self) -> int: ...

    @property
    def words(self) -> str:
        """What messages call the place, for example "this host"."""
        ...

    @property
    def cpu(self) -> str:
        """Its kind of processor, see `base.machine.cpu_architecture`."""
        ...

    @property
    def is_here(self) -> bool:
        """Whether it is this process's."""
        ...

    @property
    def version(self) -> str:
        """The version of onnxruntime."""
        ...

    def optimize(self, model: Model, target: Path, level: Level) -> Signature:
        """Optimise a model and write it.

        Args:
            model: It.
            target: The .ort file; or the .onnx file, then large weights go to the .bin file of the same name.
            level: How far.

        Raises:
            Refusal: If onnxruntime does not load it.
            OSError: If the files cannot be written.
        """
        ...

    def open(self, model: Model, *, optimize: bool = False, prepack: bool = False) -> Signature:
        """Open a model as a loader does, see `open_session`; return what it takes and gives.

        Raises:
            Refusal: If onnxruntime does not load it.
        """
        ...

    def run(
        self,
        model: Model,
        outputs: Sequence[str],
        feeds: Mapping[str, Any],
        *,
        how: How = "plain",
        times: int = 1,
    ) -> list[Any]:
        """Return outputs of a model: numpy arrays, and lists and maps as they are.

        Args:
            model: It.
            outputs: Their names.
            feeds: Its inputs.
            how: In which session.
            times: How often it runs; the last outputs count.

        Raises:
            Refusal: If it does not run.
        """
        ...

    def shapes(
        self, folder: Path, pieces: Iterable[GraphPiece], feeds: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        """Run pieces of a graph one after the other; return the shape of each tensor that they make.

        Args:
            folder: Where their weights lie.
            pieces: They, in order.
            feeds: The graph's inputs, as arrays of numbers or OrtValues.

        Raises:
            Refusal: If one does not run.
        """
        ...

    def race(self, changed: Path, original: Path, feeds: Mapping[str, Any]) -> Race:
        """Run two graphs on the same inputs, in turns; see `Race`.

        Raises:
            Refusal: If the original does not load.
        """
        ...

    def staged(
        self, folder: Path, stages: Sequence[StageEntry], outputs: Sequence[str], feeds: Mapping[str, Any]
    ) -> list[Any]:
        """Return outputs of a variant of a bundle, run stage after stage with one session at a time in memory.

        Args:
            folder: The bundle.
            stages: Of the variant.
            outputs: Names of the model's outputs.
            feeds: The model's inputs.

        Raises:
            StageRefusal: If a stage does not run.
        """
        ...


class StageRefusal(Refusal):
    """What onnxruntime says against a stage.

    Args:
        number: Of the stage, from 0.
        reason: It.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


def in_turns(changed: Callable[[], Any], original: Callable[[], Any]) -> Race:
    """Return what a race of two graphs comes to that compute the same, and have run once each.

    Args:
        changed: Runs the first.
        original: Runs the second.
    """
    least_s = [math.inf] * 2
    for _ in range(ROUNDS):
        for place, run in enumerate((changed, original)):
            start = time.perf_counter()
            run()
            least_s[place] = min(least_s[place], time.perf_counter() - start)
    return Race(True, *least_s)


def is_of_device(error: BaseException) -> bool:
    """Return whether an error tells of the place where something was to be done, and nothing of the model."""
    return isinstance(error, SplitloadError) and not isinstance(error, ModelError | UsageError)
