"""What is learned of a model on an emulated device: the plan of `splitload train`, and the optimum on a profile."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from splitload.agents.exact_ttfo import Optimum
from splitload.agents.stopping import EQUAL
from splitload.base.atomic import write_text
from splitload.base.errors import UsageError
from splitload.base.scratch import scratch_folder
from splitload.bundle.read import read_manifest
from splitload.commands.console import Console
from splitload.devices.measuring import profile_loads
from splitload.devices.pairing import read_address
from splitload.devices.remote import RemoteDevice
from splitload.envs.costs import cost_matrices
from splitload.frontends import open_source
from splitload.frontends.onnx import Source
from splitload.graphs.stage_store import StageStore
from splitload.measure.provenance import provenance
from splitload.plan.ceiling import Ceiling, most_of_a_weight
from splitload.plan.profile import Profile
from splitload.planner.least_ceiling import CeilingTooLowError
from splitload.planner.optimum import optimum
from splitload.planner.read_model import profile_on
from splitload.planner.request import TrainRequest
from splitload.planner.result import TrainResult
from splitload.planner.search import Search
from splitload.planner.train import train
from splitload.runtime.tiny import TINY_MODEL
from splitload.studies.device_classes import DeviceClass
from splitload.studies.served_arms import Builder, Plan, measure_in_turns
from splitload.studies.served_emulation import EmulatedDevice

OBJECTIVE = "ttfo"
NEED_RUNS = 3  # of each plan with all the memory there is, where memory is what a class lacks
SAMPLES = 60  # that learning takes, about: 25 of a search, 25 of ways to load, and the rest of a full profile
FEW_REPEATS, SLOW_BYTES_PER_S = 2, 100_000_000  # samples of each block of a full profile, where storage is so slow
MOST_STAGES, PROOF_S = 16, 3.0  # of the optimum on a profile; seconds for each number of stages
_STEP_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Need:
    """The memory that a model needs as one mapped stage on a device with enough of it.

    Attributes:
        peak_bytes: The most resident memory of the process up to its first output, less what it had before the load
            call and what the runtime takes; the median of `NEED_RUNS` processes.
        idle_bytes: What it had before the load call; likewise.
        runtime_bytes: What the runtime takes: the same peak of the smallest model there is.
    """

    peak_bytes: int
    idle_bytes: int
    runtime_bytes: int


class Learner:
    """Learns plans on one emulated device.

    Args:
        emulated: The device.
        folder: Where what is learned is kept.
        budget: Most stage loads of a search.
        cache: The user's cache folder.
        console: Where to tell what is done.
    """

    def __init__(self, emulated: EmulatedDevice, folder: Path, budget: int, cache: Path, console: Console) -> None:
        self._emulated, self._kind = emulated, emulated.kind
        self._folder, self._budget, self._cache, self._console = folder, budget, cache, console

    def device(self, repeats: int = 5) -> RemoteDevice:
        """Return the device, connected to."""
        address = read_address(self._emulated.url, self._cache)
        return RemoteDevice(address, self._cache, repeats=repeats, page_cache=self._kind.page_cache)

    def learned(self, model: str) -> dict[str, Any]:
        """Return what was learned of a model, now or before; see `kept`."""
        known = kept(self._folder, self._kind, model)
        if known is not None and (known["budget"], known["limits"]) != (self._budget, asdict(self._kind)):
            file = _file(self._folder, self._kind, model).name
            raise UsageError(
                f"{model} was learned on {self._kind.name} with another budget or other limits before: remove "
                f"'{file}' in the cache to learn it anew"
            )
        if known is None:
            known = self._learn(model)
            write_text(_file(self._folder, self._kind, model), json.dumps(known, indent=1), "what was learned")
        return known

    def _learn(self, model: str) -> dict[str, Any]:
        start = time.monotonic()
        minutes = SAMPLES * self._kind.sample_s(open_source(model, self._cache).size_bytes) / 60
        self._console.print(f"learning {model} on {self._kind.name}, about {minutes:.0f} minutes")
        need = None if self._kind.memory_share is None else self._need(model)
        ceiling = None
        if need is not None and self._kind.memory_share is not None:
            ceiling = int(need.peak_bytes * self._kind.memory_share) // _STEP_BYTES * _STEP_BYTES
        asked = ceiling
        with scratch_folder(self._folder, ".learning-") as made:
            target = made / "learned.splitload"
            try:
                result = self._trained(model, target, ceiling, need)
            except CeilingTooLowError as error:
                self._console.note(f"{model} on {self._kind.name}: {error}; planned under the least that does")
                ceiling = error.least_bytes
                result = self._trained(model, target, ceiling, need)
            stages = read_manifest(target).variants[0].stages
        plan = Plan.of(result.found.partition.split_points, stages, most_of_a_weight(ceiling))
        refined = result.planned.refined
        assert refined is not None  # noqa: S101 - a budget was given
        return {
            "class": self._kind.name,
            "model": model,
            "budget": self._budget,
            "limits": asdict(self._kind),
            "num_blocks": result.profile.num_blocks,
            "need": None if need is None else asdict(need),
            "asked_bytes": asked,
            "ceiling_bytes": ceiling,
            "plan": plan.to_json(),
            "loads": result.planned.measured_loads,
            "plans_measured": [list(each.split_points) for each in refined.plans],
            "raced_s": [
                {"split_points": list(each.split_points), "ttfo_s": [one.ttfo_s for one in taken]}
                for each, taken in refined.raced.items()
            ],
            "ended": "nothing better in sight" if refined.complete else "budget",
            "trial": None if result.trial is None else result.trial.to_json(),
            "learned_s": time.monotonic() - start,
            "optimum": self._optimum(result, need, ceiling),
            "elapsed_s": time.monotonic() - start,
            "provenance": provenance([]),
        }

    def limit_memory(self, need: Need | None, ceiling: int | None) -> None:
        """Give the device what its service and an idle process take, and the ceiling; without one all there is."""
        if need is None or ceiling is None:
            self._emulated.limit_memory(None)
        else:
            process_bytes = need.idle_bytes + need.runtime_bytes
            self._emulated.limit_memory(self._emulated.resident_bytes() + process_bytes + ceiling)

    def _trained(self, model: str, target: Path, ceiling: int | None, need: Need | None) -> TrainResult:
        """Do what `splitload train --device URL --budget N` does, with `--residency` where memory is limited."""
        request = TrainRequest(
            model=model,
            device=self._emulated.url,
            page_cache=self._kind.page_cache,
            objective=OBJECTIVE,
            budget=self._budget,
            residency=ceiling,
            output=str(target),
            cache=self._cache,
        )
        self.limit_memory(need, ceiling)
        try:
            return train(request, self._console)
        finally:
            self.limit_memory(None, None)

    def _optimum(self, result: TrainResult, need: Need | None, ceiling_bytes: int | None) -> dict[str, Any]:
        """Return the best plan of any number of stages on a profile of every block, measured on the device."""
        speed = self._kind.storage_bytes_per_s
        repeats = FEW_REPEATS if speed is not None and speed < SLOW_BYTES_PER_S else 5
        device, memory = self.device(repeats), result.planned.memory
        source = open_source(result.request.model, self._cache)
        self.limit_memory(need, ceiling_bytes)
        try:
            profile = profile_on(device, result.graph, self._console, source.examples)
        finally:
            self.limit_memory(None, None)
            device.close()
        best = best_on(profile, None if memory is None else memory.ceiling)
        return {
            "plan": Plan.plain(best.split_points, most_of_a_weight(ceiling_bytes)).to_json(),
            "predicted_s": best.value_s,
            "bound_s": best.bound_s,
            "proved": best.proved,
            "repeats": repeats,
            "loads": profile_loads(result.graph, repeats),
            "profile": profile.to_json(),
        }

    def _need(self, model: str) -> Need:
        """Measure what a model needs as one mapped stage, with all the memory there is."""
        device = self.device()
        try:
            with StageStore(self._cache) as store, scratch_folder(self._folder, ".need-") as made:
                tiny = made / "tiny.onnx"
                tiny.write_bytes(TINY_MODEL)
                peaks, idles = [], []
                for source in (Source.open(tiny, "tiny"), open_source(model, self._cache)):
                    builder = Builder(source, device.threads, made / source.name, store, self._console, self._cache)
                    arm = builder.arm(Plan.plain(()))
                    (taken,) = measure_in_turns(device, builder.graph(None), [arm], source, NEED_RUNS, self._console)
                    done = [each for each in taken if each is not None]
                    idles.append(statistics.median(each["idle_memory_bytes"] for each in done))
                    peaks.append(
                        statistics.median(each["peak_memory_bytes"] - each["idle_memory_bytes"] for each in done)
                    )
        finally:
            device.close()
        return Need(int(peaks[1] - peaks[0]), int(idles[1]), int(peaks[0]))


def best_on(profile: Profile, ceiling: Ceiling | None) -> Optimum:
    """Return the plan that a profile promises the first output of soonest, of up to `MOST_STAGES` stages.

    Its bound is that of all numbers of stages.

    Args:
        profile: Of every block.
        ceiling: What memory allows; None where nothing limits it.
    """
    most = None if ceiling is not None else min(MOST_STAGES, profile.num_blocks)
    counts = Search(profile, agent="exact", objective=OBJECTIVE, max_stages=most, ceiling=ceiling).counts
    costs = cost_matrices(profile, ceiling)
    found = [optimum(profile, OBJECTIVE, count, PROOF_S, costs=costs) for count in counts[:MOST_STAGES]]
    least_s = min(each.value_s for each in found)
    best = next(each for each in found if each.value_s <= (1 + EQUAL) * least_s)  # of equals the one of fewest stages
    return Optimum(best.split_points, best.value_s, min(each.bound_s for each in found))


def kept(folder: Path, kind: DeviceClass, model: str) -> dict[str, Any] | None:
    """Return what was learned of a model on a class before; None where nothing was."""
    try:
        known: dict[str, Any] = json.loads(_file(folder, kind, model).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return known


def recorded(rows: Iterable[Mapping[str, Any]], kind: DeviceClass, model: str) -> dict[str, Any] | None:
    """Return what records say was learned of a model on a class; None where none says it.

    Args:
        rows: Of all records; the class's own has what was learned last.
        kind: The class.
        model: The model.

    Returns:
        Its `plan` and the `provenance` of its search, as `kept` has them.
    """
    of_model = [row for row in rows if row["model"] == model]
    for row in of_model:
        if row["class"] == kind.name:
            return {"plan": row["plans"]["learned"], "provenance": row["learned_by"]}
    for row in of_model:
        if kind.name in row["learned_elsewhere_by"]:
            provenance = row["learned_elsewhere_by"][kind.name]
            return {"plan": row["plans"][f"learned on {kind.name}"], "provenance": provenance}
    return None


def need_of(learned: Mapping[str, Any]) -> Need | None:
    """Return the need that was measured before a plan was learned."""
    return None if learned["need"] is None else Need(**learned["need"])


def _file(folder: Path, kind: DeviceClass, model: str) -> Path:
    return folder / f"{kind.name}-{model.rpartition(':')[2]}.json"
