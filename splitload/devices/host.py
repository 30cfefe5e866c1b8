"""This machine: loads and runs stages in fresh processes and takes the time."""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from splitload.atomic import write_text
from splitload.devices import Progress
from splitload.errors import ModelError, OutputError, ProfileError
from splitload.graph import GraphKind, ModelGraph
from splitload.inputs import save_feeds
from splitload.machine import available_threads, cpu_architecture, cpu_model
from splitload.profile import BlockProfile, Cost, Profile
from splitload.schedule import Contention
from splitload.scratch import scratch_folder

REPEATS = 5
_CACHE_VERSION = 4  # of what a profile in the cache means
_Segment = tuple[int, int]


class HostDevice:
    """Measures on this machine, with a warm page cache.

    Every figure is the median of `repeats` fresh processes; each opens every segment once, as the loader does, and
    runs it twice. What was measured is kept by model hash, blocks, runtime version and machine.

    Args:
        cache: The user's cache folder.
        repeats: Fresh processes for each figure, at least 1.
        refresh: Whether to measure again what the cache holds.
    """

    name = "host"
    source: Literal["measured", "simulated"] = "measured"
    graph_kind: GraphKind = "native"
    description = "this machine, measured"

    def __init__(self, cache: Path, *, repeats: int = REPEATS, refresh: bool = False) -> None:
        self._cache = cache
        self._repeats = repeats
        self._refresh = refresh

    def profile(
        self,
        graph: ModelGraph,
        *,
        feeds: Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
    ) -> Profile:
        """Measure every block, the whole model, and how two loads slow each other down; see `Device.profile`.

        Segments that `measure` was asked for before are left out, so that a search does not depend on them.

        Raises:
            ModelError: If the model does not run on the feeds.
        """
        path = self._cache_file(graph, feeds)
        if path.is_file() and not self._refresh:
            try:
                stored = Profile.read(path)
                everything = (0, stored.num_blocks)
                return replace(stored, segments={everything: stored.segments[everything]})
            except (ProfileError, KeyError):
                path.unlink()  # of an older version
        num_blocks = len(graph.blocks)
        costs, serial_share = self._measure(graph, [(0, num_blocks)], feeds, on_progress)
        loads = [costs[number, number + 1].load_s for number in range(num_blocks)]
        whole = costs[0, num_blocks]
        fixed = (sum(loads) - whole.load_s) / (num_blocks - 1) if num_blocks > 1 else 0.0
        profile = Profile(
            model=graph.name,
            model_sha256=graph.source_sha256,
            graph=graph.kind,
            device=self.name,
            source="measured",
            blocks=tuple(
                BlockProfile(block.name, block.weights_bytes, costs[number, number + 1])
                for number, block in enumerate(graph.blocks)
            ),
            stage_fixed_s=max(fixed, 0.0),
            contention=Contention(available_threads(), min(max(serial_share, 0.0), 1.0)),
            segments={(0, num_blocks): whole},
            environment=_environment(self._repeats),
        )
        self._store(path, profile)
        self._refresh = False
        return profile

    def measure(
        self,
        graph: ModelGraph,
        segments: Iterable[_Segment],
        *,
        feeds: Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
    ) -> Profile:
        """Return the profile of `graph` with these segments measured as well; those it has are not measured again.

        Raises:
            ModelError: If the model does not run on the feeds.
        """
        profile = self.profile(graph, feeds=feeds)
        path = self._cache_file(graph, feeds)
        profile = Profile.read(path)  # with the segments that were measured before
        known = {(number, number + 1) for number in range(profile.num_blocks)} | set(profile.segments)
        missing = [segment for segment in dict.fromkeys(segments) if segment not in known]
        if not missing:
            return profile
        costs, _ = self._measure(graph, missing, feeds, on_progress)
        added = {segment: costs[segment] for segment in missing}
        profile = replace(profile, segments={**profile.segments, **added})
        self._store(path, profile)
        return profile

    def _measure(
        self,
        graph: ModelGraph,
        segments: list[_Segment],
        feeds: Mapping[str, Any] | None,
        on_progress: Progress | None,
    ) -> tuple[dict[_Segment, Cost], float]:
        """Return the median cost of each block and segment, and the serial share of two parallel loads."""
        from splitload.frontends.stages import StageWriter

        writer = StageWriter(graph)
        num_blocks = len(graph.blocks)
        chain = [(number, number + 1) for number in range(num_blocks)]
        half = _half(graph)
        pair = [(0, half), (half, num_blocks)] if num_blocks > 1 else []
        samples: dict[_Segment, list[dict[str, float]]] = {}
        shares = []
        try:
            with scratch_folder(graph.path.parent, ".measure-") as folder:
                written = {
                    segment: _row(writer, graph, segment, folder) for segment in dict.fromkeys(chain + segments + pair)
                }
                job = {
                    "folder": str(folder.resolve()),
                    "inputs": [asdict(tensor) for tensor in graph.input_tensors()],
                    "feeds": save_feeds(feeds or {}, folder),
                    "chain": [written[segment] for segment in chain],
                    "segments": [written[segment] for segment in segments if segment not in chain],
                    "pair": [written[segment] for segment in pair],
                }
                for done in range(self._repeats):
                    answer = run_worker(job)
                    for row in answer["rows"]:
                        samples.setdefault((row["start"], row["end"]), []).append(row)
                    if answer["serial_share"] is not None:
                        shares.append(answer["serial_share"])
                    if on_progress is not None:
                        on_progress(done + 1, self._repeats)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot measure in '{graph.path.parent}': {error.strerror or error}") from error
        costs = {
            segment: Cost(
                statistics.median(row["load_s"] for row in rows),
                statistics.median(row["first_inference_s"] for row in rows),
                statistics.median(row["inference_s"] for row in rows),
            )
            for segment, rows in samples.items()
        }
        return costs, statistics.median(shares) if shares else 0.0

    def _cache_file(self, graph: ModelGraph, feeds: Mapping[str, Any] | None) -> Path:
        import onnxruntime as ort

        shapes = {
            name: (str(getattr(value, "dtype", "")), getattr(value, "shape", ()))
            for name, value in sorted((feeds or {}).items())
        }
        bounds = [block.end for block in graph.blocks]
        machine = (cpu_architecture(), cpu_model(), available_threads(), ort.__version__)
        key = hashlib.sha256(repr((_CACHE_VERSION, bounds, shapes, machine, self._repeats)).encode()).hexdigest()[:16]
        return self._cache / "profiles" / f"{graph.source_sha256[:24]}-{graph.kind}-{key}.json"

    def _store(self, path: Path, profile: Profile) -> None:
        write_profile(path, profile, make_folder=True)


def write_profile(path: Path, profile: Profile, *, make_folder: bool = False) -> None:
    """Write a profile file; an older one stays until the new one is whole.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write profile '{path}': {error.strerror or error}") from error
    write_text(path, json.dumps(profile.to_json(), indent=1), "profile")


def _half(graph: ModelGraph) -> int:
    """Return the block with about half of the loading work on either side, or 0 for a single block."""
    cost = graph.cumulative_cost()
    inner = range(1, len(graph.blocks))
    return min(inner, key=lambda number: abs(cost[graph.blocks[number].start] - cost[-1] / 2), default=0)


def _row(writer: Any, graph: ModelGraph, segment: _Segment, folder: Path) -> dict[str, Any]:
    """Write a segment's stage file, and describe it for the worker."""
    start, end = segment
    stage = writer.write(*graph.node_range(start, end), folder, f"blocks-{start}-{end}")
    return {
        "start": start,
        "end": end,
        "graph": stage.graph.name,
        "inputs": stage.inputs,
        "outputs": [(spec.name, spec.type) for spec in stage.outputs],
    }


def run_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Run one fresh measuring process on a job that `devices.worker` understands.

    Raises:
        ModelError: If it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "splitload.devices.worker"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
        names = ", ".join(row["name"] for row in job["inputs"] if row["name"] not in job["feeds"])
        cure = f"; give fitting inputs with --input NAME=FILE.npy (made up: {names})" if names else ""
        raise ModelError(f"the model cannot be measured on this host{cure}: {lines[-1][:300]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _environment(repeats: int) -> dict[str, str]:
    import onnxruntime as ort

    return {
        "onnxruntime": ort.__version__,
        "cpu": cpu_architecture(),
        "cpu_model": cpu_model(),
        "page_cache": "warm",
        "repeats": str(repeats),
    }
