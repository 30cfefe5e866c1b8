"""The file that keeps a search, Q-table and all, so that the same command goes on where an interrupt ended it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from splitload.agents import checkpoint
from splitload.agents.q_learning import QLearning
from splitload.agents.results import Plan, Progress, SearchResult
from splitload.base.atomic import write_text
from splitload.base.errors import CheckpointError, OutputError
from splitload.base.sealed import KEY, is_intact, seal

FORMAT = "splitload-search"
VERSION = 2  # from when episodes return to one plan
MAX_BYTES = 256 << 20
INTERVAL_S = 2.0  # of searching between two writes,
WRITING_SHARE = 0.05  # or more where writing would take more of the time than this
FORGOTTEN_DAYS = 30  # after which interrupted searches leave the cache


class Checkpoint:
    """Keeps one search in a file: every few seconds, at an interrupt, and, in a file of the user's, at the end.

    The file is one JSON object: `format`, `version`, `search` (what the search is of: a file is never taken for
    another), `agent` (see `splitload.agents.checkpoint`) and its own `sha256`. It is replaced as a whole, so that even
    a killed process leaves the one before.

    Args:
        file: The user's own file, which stays; None for one in the cache, which a finished search removes.
        search: What tells the search from others, as plain JSON values: `Search.identity`.
        cache: The user's cache folder.
        note: Called with one line that the user should know.

    Attributes:
        path: The file.
        saved: Whether the file holds what this process found.
    """

    def __init__(self, file: Path | None, search: Mapping[str, Any], cache: Path, note: Callable[[str], None]) -> None:
        text = json.dumps(search, sort_keys=True, separators=(",", ":"), allow_nan=False)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._search = dict(search)
        self._note = note
        self._lasting = file is not None
        self._given_up = False
        self.path = file or cache / "searches" / f"{fingerprint}.json"
        self.saved = False

    def train(
        self,
        agent: QLearning,
        *,
        num_stages: Sequence[int],
        episodes: int | None = None,
        decides: Callable[[Plan], float] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> SearchResult:
        """Train as `agent.train` does, going on with the search in the file where there is one.

        Raises:
            KeyboardInterrupt: After the episode in which it came, when the search is in the file.
            CheckpointError: If the user's file is damaged or of another search; it is left as it is.
            OutputError: If the user's file cannot be written. One in the cache is done without.
        """
        resume = self._restore(agent)
        due_s = time.perf_counter() + INTERVAL_S

        def after(now: Progress) -> None:
            nonlocal due_s
            if on_progress is not None:
                on_progress(now)
            start_s = time.perf_counter()
            if start_s >= due_s:
                self._save(agent)
                end_s = time.perf_counter()
                due_s = end_s + max(INTERVAL_S, (end_s - start_s) / WRITING_SHARE)

        with _interrupts_held() as interrupted:
            try:
                result = agent.train(
                    num_stages=num_stages,
                    episodes=episodes,
                    decides=decides,
                    resume=resume,
                    on_progress=after,
                    should_stop=interrupted,
                )
                if interrupted():
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                self._save(agent)
                raise
        if self._lasting:
            self._save(agent)
        else:
            with contextlib.suppress(OSError):
                self.path.unlink()
        return result

    def _restore(self, agent: QLearning) -> bool:
        """Give the agent what the file holds; return whether there was something."""
        try:
            checkpoint.restore(agent, self._read())
        except FileNotFoundError:
            return False
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            problem = f"the checkpoint '{self.path}' cannot be used: {reason}"
            if self._lasting:
                raise CheckpointError(f"{problem}; delete it, or give another file") from error
            self._note(f"{problem}; the search starts anew")
            return False
        self._note(f"resuming the search at episode {agent.episode}, kept in '{self.path}'")
        return True

    def _read(self) -> Any:
        """Return the agent's part of the file.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is damaged, or of another search.
            RecursionError: If it is nested without end.
        """
        size_bytes = self.path.stat().st_size
        if size_bytes > MAX_BYTES:
            raise ValueError(f"it has {size_bytes} bytes, no checkpoint has more than {MAX_BYTES}")
        try:
            text = self.path.read_bytes()
            data = json.loads(text)
        except ValueError as error:
            raise ValueError(f"it is not JSON ({error})") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"it is no checkpoint of a search, its format is not '{FORMAT}'")
        if data.get("version") != VERSION:
            raise ValueError(f"it has version {data.get('version')!r:.40}, this splitload reads version {VERSION}")
        if data.pop(KEY, None) is not None and not is_intact(text):
            raise ValueError("it is damaged, its own SHA-256 differs")
        if set(data) != {"format", "version", "search", "agent"}:
            raise ValueError("it is damaged: it must have the keys format, version, search and agent, and no others")
        there = data["search"]
        if not isinstance(there, dict) or set(there) != set(self._search):
            raise ValueError(f"it is damaged: its search must have the keys {sorted(self._search)}")
        others = [
            f"{key} {there[key]!r:.60} and not {here!r}" for key, here in self._search.items() if there[key] != here
        ]
        if others:
            raise ValueError(f"it is of another search, with {', '.join(others)}")
        return data["agent"]

    def _save(self, agent: QLearning) -> None:
        if self._given_up:
            return
        data = {"format": FORMAT, "version": VERSION, "search": self._search, "agent": checkpoint.dump(agent)}
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
        try:
            if len(text) > MAX_BYTES:
                raise OutputError(f"cannot write checkpoint '{self.path}': it would be larger than {MAX_BYTES} bytes")
            if not self._lasting:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _forget(self.path.parent)
            write_text(self.path, seal(text), "checkpoint")
            self.saved = True
        except OSError as error:
            if self._lasting:
                raise
            self._given_up = True
            self._note(f"the search is not kept for resuming: {error}")


def _forget(folder: Path) -> None:
    """Remove what nobody came back for, and what killed processes left half-written."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if time.time() - path.stat().st_mtime > FORGOTTEN_DAYS * 86_400:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[Callable[[], bool]]:
    """Yield what tells whether Ctrl-C was pressed, which meanwhile raises nothing: amid an episode it would cost it.

    Only the main thread gets interrupts; where the program handles them in its own way, that is left to it.
    """
    pressed: list[int] = []  # appending is safe in a handler, which may interrupt itself; a lock is not
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
