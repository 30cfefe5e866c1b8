"""Devices that measure: stages are loaded in fresh processes on a machine, and what that took is kept in a cache."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from splitload.base.atomic import write_text
from splitload.base.entries import discard
from splitload.base.errors import ModelError, OutputError, ProfileError
from splitload.base.scratch import scratch_folder
from splitload.base.sealed import KEY, is_intact, seal
from splitload.bundle.manifest import TensorSpec, Variant
from splitload.devices import PageCache, Progress
from splitload.devices.estimate import FirstOutput, guess, with_first_outputs
from splitload.devices.graph_runtime import runtime_of
from splitload.devices.journal import Journal
from splitload.devices.ledger import SAMPLES, median_cost
from splitload.devices.machine import Machine
from splitload.devices.runs import Runs, even_cut
from splitload.devices.tuning import tune
from splitload.graphs.runtime import GraphRuntime
from splitload.measure.fresh import Runner
from splitload.measure.sampling import Arm, Sample, answered, first_output
from splitload.plan.graph import GraphKind, ModelGraph
from splitload.plan.partition import Partition
from splitload.plan.profile import BlockProfile, Cost, Profile, Segment
from splitload.plan.schedule import Contention
from splitload.runtime.inputs import InputSpec

REPEATS = 5
CUT_STAGES = 4  # of the cut that is loaded as a bundle's, to see what a cut costs besides its loads and inferences
PLAN_SAMPLES = 2  # of each of the two plans that are loaded so, for each one of the blocks: they are noisier
_CACHE_VERSION = 8  # of what a profile in the cache means


class MeasuringDevice:
    """Measures on a machine; a `Device` and its own `Measuring`.

    Every figure is the median of `repeats` fresh processes; each opens every segment once, as the loader does, and
    runs it twice. Two plans are loaded as those of a bundle besides, each in processes of its own: the whole model, and
    an even cut. What was measured is kept by model hash, blocks, runtime version and machine.

    Args:
        machine: What it measures on.
        cache: The user's cache folder.
        repeats: Fresh processes for each figure, at least 1.
        refresh: Whether to measure again what the cache holds.
        page_cache: Whether the files that a process loads are in the system's page cache when it begins ("warm"), or
            are evicted before each process ("cold").
    """

    source: Literal["measured", "simulated"] = "measured"
    graph_kind: GraphKind = "native"
    description: str

    def __init__(
        self,
        machine: Machine,
        cache: Path,
        *,
        repeats: int = REPEATS,
        refresh: bool = False,
        page_cache: PageCache = "warm",
    ) -> None:
        self.name = machine.name
        self.page_cache = page_cache
        self._warm = machine
        self._machine = machine if page_cache == "warm" else machine.cold()
        self._cache = cache
        self._repeats = repeats
        self._refresh = refresh

    @cached_property
    def runtime(self) -> GraphRuntime:
        """The runtime that native graphs are made for, and by; see `runtime_of`."""
        return runtime_of(self._warm)

    @property
    def is_here(self) -> bool:
        """Whether it is this machine."""
        return not self._machine.identity

    @property
    def environment(self) -> dict[str, str]:
        """What records say of it."""
        on = self._machine
        return {"onnxruntime": on.onnxruntime(), "cpu": on.cpu, "cpu_model": on.cpu_model}

    @property
    def run(self) -> Runner:
        """Does a job there in a fresh process."""
        return self._machine.run

    @property
    def measuring(self) -> MeasuringDevice:
        """Itself: it can measure."""
        return self

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
        cut = even_cut(graph, CUT_STAGES)
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
            contention=Contention(self._machine.threads, min(max(serial_share, 0.0), 1.0)),
            segments={(0, num_blocks): whole},
            environment=self._environment(self._repeats),
        )
        if firsts:
            profile = replace(profile, contention=with_first_outputs(profile, cut, firsts[0], firsts[-1]))
        self._store(path, profile)
        self.settled(graph, feeds)
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
        self.settled(graph, feeds)
        return profile

    def settled(self, graph: ModelGraph, feeds: Mapping[str, Any] | None = None) -> None:
        """Forget samples that were kept for another attempt; see `Measuring.settled`."""
        self._journal(graph, feeds).forget()

    @contextmanager
    def runs(self, graph: ModelGraph, feeds: Mapping[str, Any] | None = None) -> Iterator[Runs]:
        """Give what measures stages of `graph` in fresh processes; the files they need are gone at the end.

        Raises:
            OutputError: If they cannot be written.
        """
        try:
            with scratch_folder(graph.path.parent, ".measure-") as folder:
                yield Runs(graph, feeds or {}, folder, self._machine, self._journal(graph, feeds), self.runtime)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot measure in '{graph.path.parent}': {error.strerror or error}") from error

    def guess(self, graph: ModelGraph) -> Profile:
        """Return what blocks may cost, before anything is measured; see `Measuring.guess`."""
        return guess(graph, self.name, self._machine.threads, self._environment(SAMPLES))

    def first_output(self, arm: Arm, inputs: Iterable[InputSpec], feeds: Mapping[str, Any]) -> Sample:
        """Load a model or a bundle once and run it; see `Measuring.first_output`."""
        return first_output(arm, inputs, feeds, self._machine.run)

    def answer(
        self, arm: Arm, inputs: Iterable[InputSpec], feeds: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Load a model or a bundle once, and return its outputs; see `Measuring.answer`."""
        return answered(arm, inputs, feeds, self._machine.run)

    def expect(self, paths: Sequence[Path]) -> None:
        """Hear of files that will be loaded later; see `Measuring.expect`."""
        self._machine.expect(paths)

    def tune(
        self,
        folder: Path,
        variant: Variant,
        inputs: Sequence[TensorSpec],
        feeds: Mapping[str, Any],
        on_progress: Progress | None = None,
    ) -> Variant:
        """Return a variant with the way to load each stage; see `Measuring.tune`."""
        return tune(self._machine, folder, variant, inputs, feeds, on_progress)

    def _environment(self, repeats: int) -> dict[str, str]:
        """Return what a profile says about how it was made."""
        return {**self.environment, "page_cache": self.page_cache, "repeats": str(repeats)}

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
                taken, share = runs.sample(chain, others, pair=bool(plans))
                for segment, cost in taken:
                    samples.setdefault(segment, []).append(cost)
                if share is not None:
                    shares.append(share)
                try:
                    for plan, firsts in [*zip(plans, outputs, strict=True)] * PLAN_SAMPLES:
                        firsts.append(runs.first_output(plan, self._machine.threads))
                except ModelError:
                    plans, outputs = (), []
                if on_progress is not None:
                    on_progress(done + 1, self._repeats)
        costs = {segment: median_cost(each) for segment, each in samples.items()}
        serial_share = statistics.median(shares) if shares else 0.0
        return costs, serial_share, [FirstOutput.median(each) for each in outputs]

    def _journal(self, graph: ModelGraph, feeds: Mapping[str, Any] | None) -> Journal:
        return Journal(self._cache_file(graph, feeds).with_suffix(".journal"))

    def _cache_file(self, graph: ModelGraph, feeds: Mapping[str, Any] | None) -> Path:
        shapes = {
            name: (str(getattr(value, "dtype", "")), getattr(value, "shape", ()))
            for name, value in sorted((feeds or {}).items())
        }
        bounds = [block.end for block in graph.blocks]
        if graph.max_weight_bytes is not None:  # other weights may be cut into as many parts
            bounds.append(graph.max_weight_bytes)
        on = self._machine
        machine: tuple[Any, ...] = (on.cpu, on.cpu_model, on.threads, on.onnxruntime())
        machine += ((on.identity,) if on.identity else ()) + ((self.page_cache,) if self.page_cache != "warm" else ())
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


def profile_loads(graph: ModelGraph, repeats: int = REPEATS) -> int:
    """Return how many stages are loaded to profile a graph, but for the first of each process."""
    num_blocks = len(graph.blocks)
    if num_blocks == 1:
        return repeats * (1 + PLAN_SAMPLES)
    whole, halves = 1, 4  # two halves, alone and together
    return repeats * (num_blocks + whole + halves + PLAN_SAMPLES * (1 + even_cut(graph, CUT_STAGES).num_stages))
