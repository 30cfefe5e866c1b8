"""Runs one machine's program of a shared inference: computes pieces, sends rows, waits for others."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.base.errors import StageError
from splitload.base.regular import read_checked
from splitload.bundle.collaboration import Collaboration, ProgramStep
from splitload.deploy.row_store import RowStore
from splitload.deploy.shared_timeline import Span
from splitload.runtime.forks import making_session
from splitload.runtime.settings import PLAIN
from splitload.runtime.stock import python_module, session_beside

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Send = Callable[[ProgramStep, Sequence["Array"]], None]
Receive = Callable[[ProgramStep], Sequence["Array"]]


class PieceRunner:
    """Runs the pieces of a collaboration; each session is made once, and may be run by many threads.

    Args:
        folder: The collaboration's folder.
        bundle: That of the bundle whose weights they read.
        collaboration: What its manifest says, checked.
        threads: Inference threads, the calling one among them.
        turns: Makes a block in which a piece is computed, for those who share processors.
    """

    def __init__(
        self,
        folder: Path,
        bundle: Path,
        collaboration: Collaboration,
        threads: int = 1,
        turns: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.collaboration, self._turns = collaboration, turns
        self._folder, self._bundle, self._threads = folder, bundle, threads
        self._sessions: dict[int, Any] = {}
        self._lock = threading.Lock()
        self.tensors = {tensor.name: tensor for tensor in collaboration.tensors}

    def store(self) -> RowStore:
        """Return a place for the rows of one inference."""
        return RowStore(self.tensors)

    def open(self, steps: Iterable[ProgramStep]) -> None:
        """Make the sessions of a program that there are not yet.

        Raises:
            StageError: If the runtime does not take one.
        """
        for step in steps:
            if step.kind == "compute":
                self._session(step.number)

    def follow(
        self,
        steps: Sequence[ProgramStep],
        store: RowStore,
        send: Send,
        receive: Receive,
        spans: list[Span] | None = None,
    ) -> None:
        """Run a program.

        Args:
            steps: It.
            store: Where rows are; on the device those of the inputs are there.
            send: Sends rows of tensors of a level, as the step says.
            receive: Waits for such rows and returns them.
            spans: Where to note when each step began and ended.

        Raises:
            StageError: If a piece does not run.
        """
        for step in steps:
            begun_s = time.perf_counter()
            if step.kind == "compute":
                self._compute(step.number, store)
            elif step.kind == "send":
                send(step, [store.get(*part) for part in step.parts])
            else:
                for part, rows in zip(step.parts, receive(step), strict=True):
                    store.put(*part, rows)
            if spans is not None:
                spans.append((begun_s, time.perf_counter()))

    def _compute(self, number: int, store: RowStore) -> None:
        session, piece = self._session(number), self.collaboration.pieces[number]
        given = {part.tensor: store.get(*part) for part in piece.reads}
        try:
            with self._turns():
                found = session.run(None, given)
        except Exception as error:  # onnxruntime has no common root for its errors
            raise StageError(f"'{piece.graph.name}' does not run: {' '.join(str(error).split())[:300]}") from error
        for part, value in zip(piece.gives, found, strict=True):
            store.put(*part, value)

    def _session(self, number: int) -> Any:
        if (found := self._sessions.get(number)) is not None:  # whoever opens another one keeps nobody waiting
            return found
        with self._lock:
            if number not in self._sessions:
                self._sessions[number] = self._opened(number)
            return self._sessions[number]

    def _opened(self, number: int) -> Any:
        ort = python_module("inferences are shared")
        file = self.collaboration.pieces[number].graph
        try:
            with making_session():
                data = read_checked(self._folder / file.name, file)
                return session_beside(self._bundle, data, piece_options(ort, self._threads))
        except Exception as error:
            raise StageError(f"'{file.name}' cannot be opened: {' '.join(str(error).split())[:300]}") from error


def piece_options(ort: Any, threads: int) -> Any:
    """Return the options of the session of a piece: its graph and its weights are taken as they are.

    Args:
        ort: onnxruntime's Python module.
        threads: Inference threads, the calling one among them.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False
    options.log_severity_level = 4
    for key, value in PLAIN.items():
        options.add_session_config_entry(key, value)
    return options
