"""This machine: loads and runs stages in fresh processes and takes the time."""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from splitload.base.atomic import write_text
from splitload.base.entries import discard
from splitload.base.errors import ModelError, OutputError, ProfileError
from splitload.base.machine import available_threads, cpu_architecture, cpu_model
from splitload.base.scratch import scratch_folder
from splitload.base.sealed import KEY, is_intact, seal
from splitload.bundle.manifest import MANIFEST, Manifest, TensorSpec, Variant
from splitload.devices import Progress
from splitload.devices.estimate import FirstOutput, with_first_outputs
from splitload.devices.ledger import Segment, median_cost
from splitload.graphs.stages import StageFiles, StageWriter
from splitload.measure.process import python
from splitload.plan.graph import GraphKind, ModelGraph
from splitload.plan.partition import Partition
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention
from splitload.runtime.inputs import cure, save_feeds

REPEATS = 5
CUT_STAGES = 4  # of the cut that is loaded as a bundle's, to see what a cut costs besides its loads and inferences
PLAN_SAMPLES = 2  # of each of the two plans that are loaded so, for each one of the blocks: they are noisier
_CACHE_VERSION = 6  # of what a profile in the cache means


class HostDevice:
    """Measures on this machine, with a warm page cache.

    Every figure is the median of `repeats` fresh processes; each opens every segment once, as the loader does, and
    runs it twice. Two plans are loaded as those of a bundle besides, each in processes of its own: the whole model, and
    an even cut. What was measured is kept by model hash, blocks, runtime version and machine.

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
        """Measure every block, the whole model, and what loads in parallel cost besides; see `Device.profile`.

        Segments that `measure` was asked for before are left out, so that a search does not depend on them.

        Raises:
            ModelError: If the model does not run on the feeds.
        """
        path = self._cache_file(graph, feeds)
        stored = None if self._refresh else self._recall(path)
        if stored is not None:
            everything = (0, stored.num_blocks)
            return replace(stored, segments={everything: stored.segments[everything]})
        num_blocks = len(graph.blocks)
        cut = _even(graph, CUT_STAGES)
        plans = list(dict.fromkeys((Partition(num_blocks), cut)))
        costs, serial_share, firsts = self._measure(graph, [(0, num_blocks)], feeds, on_progress, plans)
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
            stage_fixed_s=min(max(fixed, 0.0), *loads),  # every block's load contains it
            contention=Contention(available_threads(), min(max(serial_share, 0.0), 1.0)),
            segments={(0, num_blocks): whole},
            environment=self.environment(self._repeats),
        )
        if firsts:
            profile = replace(profile, contention=with_first_outputs(profile, cut, firsts[0], firsts[-1]))
        self._store(path, profile)
        self._refresh = False
        return profile

    def measure(
        self,
        graph: ModelGraph,
        segments: Iterable[Segment],
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
        profile = self._recall(path) or profile  # with the segments that were measured before
        known = {(number, number + 1) for number in range(profile.num_blocks)} | set(profile.segments)
        missing = [segment for segment in dict.fromkeys(segments) if segment not in known]
        if not missing:
            return profile
        costs, _, _ = self._measure(graph, missing, feeds, on_progress)
        added = {segment: costs[segment] for segment in missing}
        profile = replace(profile, segments={**profile.segments, **added})
        self._store(path, profile)
        return profile

    @contextmanager
    def runs(self, graph: ModelGraph, feeds: Mapping[str, Any] | None = None) -> Iterator[Runs]:
        """Give what measures stages of `graph` in fresh processes; the files they need are gone at the end.

        Raises:
            OutputError: If they cannot be written.
        """
        try:
            with scratch_folder(graph.path.parent, ".measure-") as folder:
                yield Runs(graph, feeds or {}, folder)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot measure in '{graph.path.parent}': {error.strerror or error}") from error

    def environment(self, repeats: int | str) -> dict[str, str]:
        """Return what a profile of this machine says about how it was made."""
        import onnxruntime as ort

        return {
            "onnxruntime": ort.__version__,
            "cpu": cpu_architecture(),
            "cpu_model": cpu_model(),
            "page_cache": "warm",
            "repeats": str(repeats),
        }

    def _measure(
        self,
        graph: ModelGraph,
        segments: list[Segment],
        feeds: Mapping[str, Any] | None,
        on_progress: Progress | None,
        plans: Sequence[Partition] = (),
    ) -> tuple[dict[Segment, Cost], float, list[FirstOutput]]:
        """Return medians: of each block and segment, the serial share of two loads, and each plan's first output.

        Of the plans none is returned where one cannot be loaded: another cut may.
        """
        chain = [(number, number + 1) for number in range(len(graph.blocks))]
        samples: dict[Segment, list[Cost]] = {}
        shares = []
        outputs: list[list[FirstOutput]] = [[] for _ in plans]
        with self.runs(graph, feeds) as runs:
            for done in range(self._repeats):
                others = [segment for segment in segments if segment not in chain]
                taken, share = runs.sample(chain, others, pair=True)
                for segment, cost in taken:
                    samples.setdefault(segment, []).append(cost)
                if share is not None:
                    shares.append(share)
                try:
                    for plan, firsts in [*zip(plans, outputs, strict=True)] * PLAN_SAMPLES:
                        firsts.append(runs.first_output(plan, available_threads()))
                except ModelError:
                    plans, outputs = (), []
                if on_progress is not None:
                    on_progress(done + 1, self._repeats)
        costs = {segment: median_cost(each) for segment, each in samples.items()}
        serial_share = statistics.median(shares) if shares else 0.0
        return costs, serial_share, [FirstOutput.median(each) for each in outputs]

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
        """Keep a profile in the cache, with a hash of its own."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write profile '{path}': {error.strerror or error}") from error
        write_text(path, seal(json.dumps(profile.to_json(), indent=1)), "profile")

    def _recall(self, path: Path) -> Profile | None:
        """Return a profile from the cache; None where none is, or what is there is damaged, which is told."""
        try:
            text = path.read_bytes()
            if is_intact(text):
                data = json.loads(text)
                del data[KEY]
                return Profile.from_json(data, path.name)
            reason = "it is not as it was written"
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"cannot read profile '{path}': {error.strerror or error}") from error
        except (ProfileError, ValueError) as error:
            reason = str(error)
        discard(path, reason)
        return None


def write_profile(path: Path, profile: Profile) -> None:
    """Write a profile file; an older one stays until the new one is whole.

    Raises:
        OutputError: If it cannot be written.
    """
    write_text(path, json.dumps(profile.to_json(), indent=1), "profile")


def _even(graph: ModelGraph, num_stages: int) -> Partition:
    """Return a cut into about equal loading work; of fewer stages where blocks are few or one does most of it."""
    cost, num_blocks = graph.cumulative_cost(), len(graph.blocks)
    shares = [cost[-1] * number / num_stages for number in range(1, num_stages)] if num_blocks > 1 else []
    starts = {number: cost[graph.blocks[number].start] for number in range(1, num_blocks)}
    points = {min(starts, key=lambda number: abs(starts[number] - share)) for share in shares}
    return Partition(num_blocks, tuple(sorted(points)))


def profile_loads(graph: ModelGraph, repeats: int = REPEATS) -> int:
    """Return how many stages are loaded to profile a graph, but for the first of each process."""
    num_blocks = len(graph.blocks)
    if num_blocks == 1:
        return repeats * (1 + PLAN_SAMPLES)
    whole, halves = 1, 4  # two halves, alone and together
    return repeats * (num_blocks + whole + halves + PLAN_SAMPLES * (1 + _even(graph, CUT_STAGES).num_stages))


class Runs:
    """Measures stages of one graph, each sample in a fresh process.

    Args:
        graph: The model.
        feeds: Inputs; made up where missing.
        folder: Where the stages' files are written, once each.
    """

    def __init__(self, graph: ModelGraph, feeds: Mapping[str, Any], folder: Path) -> None:
        self._graph = graph
        self._folder = folder
        self._writer = StageWriter(graph)
        self._written: dict[Segment, StageFiles] = {}
        self._inputs = {
            "folder": str(folder.resolve()),
            "inputs": [asdict(tensor) for tensor in graph.input_tensors()],
            "feeds": save_feeds(feeds, folder),
        }

    def sample(
        self, chain: Sequence[Segment], others: Sequence[Segment] = (), *, pair: bool = False
    ) -> tuple[list[tuple[Segment, Cost]], float | None]:
        """Load and run once the stages of a partition, in order, and other segments where their inputs are there.

        Args:
            chain: The stages.
            others: Further segments; each begins where one of the stages does.
            pair: Whether to load two halves of the model as well, alone and together: four loads.

        Returns:
            What each took, and of a pair the share of the shorter load that the longer one waits for.

        Raises:
            ModelError: If the model does not run.
        """
        halves = list(_even(self._graph, 2).stages()) if pair and len(self._graph.blocks) > 1 else []
        files = (("chain", chain), ("segments", others), ("pair", halves))
        answer = run_worker(
            {**self._inputs, **{name: [self._row(segment) for segment in each] for name, each in files}}
        )
        costs = [
            ((row["start"], row["end"]), Cost(row["load_s"], row["first_inference_s"], row["inference_s"]))
            for row in answer["rows"]
        ]
        return costs, answer["serial_share"]

    def _row(self, segment: Segment) -> dict[str, Any]:
        """Describe a segment's stage file for the worker."""
        stage = self._stage(segment)
        return {
            "start": segment[0],
            "end": segment[1],
            "graph": stage.graph.name,
            "inputs": stage.inputs,
            "outputs": [(spec.name, spec.type) for spec in stage.outputs],
            "options": {"prepack": stage.prepack, "optimize": stage.optimize_first},
        }

    def _stage(self, segment: Segment) -> StageFiles:
        """Return a segment's stage file, and write it the first time."""
        if segment not in self._written:
            nodes = self._graph.node_range(*segment)
            self._written[segment] = self._writer.write(*nodes, self._folder, "blocks-{}-{}".format(*segment))
        return self._written[segment]

    def first_output(self, plan: Partition, threads: int) -> FirstOutput:
        """Load a plan once as that of a bundle, in a fresh process, and return when it was loaded and when it answered.

        Args:
            plan: Its stages are loaded in the plain way, and not made anew afterwards.
            threads: Loading threads.

        Raises:
            ModelError: If the model does not run.
        """
        graph = self._graph
        stages = tuple(
            # a weight may lie in the file of a stage of another plan, which this manifest does not name
            self._stage(segment).entry(str(segment), segment, upgrade=False)._replace(shares=())
            for segment in plan.stages()
        )
        inputs, outputs = (
            tuple(TensorSpec(name, graph.tensors[name].type, graph.tensors[name].shape) for name in names)
            for names in (graph.inputs, graph.outputs)
        )
        manifest = Manifest(
            model=graph.name,
            model_sha256=graph.source_sha256,
            model_bytes=graph.source_bytes,
            created_with={},
            cpu=cpu_architecture(),
            device=HostDevice.name,
            plan={},
            inputs=inputs,
            outputs=outputs,
            variants=(Variant(graph.kind, None, None, threads, True, stages),),
        )
        (self._folder / MANIFEST).write_text(json.dumps(manifest.to_json()), encoding="utf-8")
        answer = run_worker({**self._inputs, "threads": threads})
        return FirstOutput(answer["load_s"], answer["ttfo_s"])


def run_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Run one fresh measuring process on a job that `devices.worker` understands.

    Raises:
        ModelError: If it fails.
    """
    done = subprocess.run(
        python("splitload.measure.stages"),
        input=json.dumps(job),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
        names = [row["name"] for row in job["inputs"] if row["name"] not in job["feeds"]]
        raise ModelError(f"the model cannot be measured on this host{cure(names)}: {lines[-1][:300]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
