"""Plans learned on emulated devices that serve, measured there: `python -m splitload.studies.served --class NAME`.

Every device is a real `splitload serve` with the storage, processors, memory and link of its class, and this process is
the desk, see `served_emulation`; it needs root. For each model the plan of `splitload train --budget` is learned there
first, and the optimum found on a profile of every block; what is learned is kept in the cache, so that classes can be
learned one after the other (`--learn`), and a study that was stopped goes on where it was. Then all plans are measured
on the class in fresh processes, in turns: the learned one, the optimum, those learned on the other classes (what the
records in results/ say of those that were not learned here), equal bytes, and one stage in every way to load it. Plans
that are the same have the same samples, and those that may be the best are measured until it is known what they take,
see `served_rounds`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from splitload.agents.baselines import uniform_bytes
from splitload.base.atomic import write_text
from splitload.base.cache import user_cache
from splitload.base.errors import UsageError
from splitload.base.scratch import scratch_folder
from splitload.build.residency import ResidencyScheme
from splitload.commands.console import Console
from splitload.devices.remote import RemoteDevice
from splitload.frontends import open_source
from splitload.graphs.stage_store import StageStore
from splitload.measure.provenance import provenance
from splitload.plan.partition import Partition
from splitload.planner.residency import MemoryLimit
from splitload.studies import served_tables
from splitload.studies.device_classes import CLASSES, DeviceClass, class_named
from splitload.studies.records import ROOT, read_records, write_record
from splitload.studies.served_arms import SINGLES, Builder, Plan, Samples, measure_in_turns
from splitload.studies.served_emulation import EmulatedDevice
from splitload.studies.served_plans import NEED_RUNS, Learner, kept, need_of, recorded
from splitload.studies.served_rounds import FEWEST_RUNS, contenders
from splitload.studies.study import at_least, errors_in_one_line, study_parser

MODELS = ("zoo:mobilenet_v1", "zoo:densenet201", "zoo:inception_v3", "zoo:resnet152", "zoo:distilbert")
BUDGET, RUNS = 200, 15
UNIFORM_STAGES = 4  # of the plan of equal bytes where the learned one has a single stage
KIND = "served"  # of record
_ROOM = "served-study"
_FIGURES = ("ttfo_s", "peak_memory_bytes", "idle_memory_bytes")


class Study:
    """Measures plans on the device of a class.

    Args:
        emulated: The device.
        learner: What learns there.
        folder: Where rows are kept.
        runs: The most samples of each plan.
        cache: The user's cache folder.
        console: Where to tell what is done.
    """

    def __init__(
        self, emulated: EmulatedDevice, learner: Learner, folder: Path, runs: int, cache: Path, console: Console
    ) -> None:
        self._emulated, self._kind, self._learner = emulated, emulated.kind, learner
        self._folder, self._runs, self._cache, self._console = folder, runs, cache, console
        self._recorded = [row for _, record in read_records(ROOT / "results").get(KIND, []) for row in record["rows"]]

    def row(self, model: str) -> dict[str, Any]:
        """Return what plans of a model take here; a row of the same plans and runs that was measured is not again."""
        learned = self._learner.learned(model)
        elsewhere = self._elsewhere(model)
        with StageStore(self._cache) as store, scratch_folder(self._folder, ".measuring-") as made:
            device = self._learner.device()
            try:
                builder = Builder(
                    open_source(model, self._cache), device.threads, made, store, self._console, self._cache
                )
                named = _plans(learned, elsewhere, builder)
                plans = {name: plan.as_loaded(self._kind.page_cache) for name, plan in named.items()}
                return self._known(model, plans) or self._measured(learned, plans, builder, device)
            finally:
                device.close()

    def _measured(
        self,
        learned: Mapping[str, Any],
        plans: Mapping[str, Plan],
        builder: Builder,
        device: RemoteDevice,
    ) -> dict[str, Any]:
        model = learned["model"]
        distinct = list(dict.fromkeys(plans.values()))
        self._announce(model, builder, len(distinct))
        schemes = [self._scheme(each, learned["ceiling_bytes"], builder, device) for each in distinct]
        arms = [builder.arm(each, scheme) for each, scheme in zip(distinct, schemes, strict=True)]
        graph, need = builder.graph(None), need_of(learned)
        fitting = [number for number, scheme in enumerate(schemes) if scheme is not None or need is None]
        again = partial(contenders, judged=distinct.index(plans["learned"]), fitting=fitting)
        kills = self._emulated.kills()
        self._learner.limit_memory(need, learned["ceiling_bytes"])
        try:
            taken = measure_in_turns(device, graph, arms, builder.source, self._runs, self._console, again)
        finally:
            self._learner.limit_memory(None, None)
        needs: list[Samples] = [[] for _ in arms]
        if need is not None:
            needs = measure_in_turns(device, graph, arms, builder.source, NEED_RUNS, self._console)
        row = {
            **{key: learned[key] for key in _TAKEN_OVER},
            "page_cache": self._kind.page_cache,
            "device": {name: device.said.get(name) for name in _SAID},
            "plans": {name: {**plan.to_json(), "measured": distinct.index(plan)} for name, plan in plans.items()},
            "samples": [_kept(each) for each in taken],
            "need_samples": [_kept(each) for each in needs],
            "has_scheme": [scheme is not None for scheme in schemes],
            "kills": self._emulated.kills() - kills,
            "runs": self._runs,
            "optimum": {key: value for key, value in learned["optimum"].items() if key != "profile"},
            "learned_by": learned["provenance"],
            "learned_elsewhere_by": {name: each["provenance"] for name, each in self._elsewhere(model).items()},
            "measured_by": provenance([]),
        }
        write_text(self._row_file(model), json.dumps(row), "the row")
        return row

    def _elsewhere(self, model: str) -> dict[str, dict[str, Any]]:
        """Return what was learned of a model on each other class: here, or else by what a record says.

        Raises:
            UsageError: If it was not on one.
        """
        others = {name: each for name, each in CLASSES.items() if each != self._kind}
        found = {
            name: kept(self._folder, each, model) or recorded(self._recorded, each, model)
            for name, each in others.items()
        }
        known = {name: each for name, each in found.items() if each is not None}
        if missing := [name for name in found if name not in known]:
            raise UsageError(f"{model} has not been learned on {', '.join(missing)}: run that with --learn first")
        return known

    def _scheme(
        self, plan: Plan, ceiling_bytes: int | None, builder: Builder, device: RemoteDevice
    ) -> ResidencyScheme | None:
        """Return how a plan is kept under the ceiling of this class; None where it does not fit, or there is none."""
        if ceiling_bytes is None:
            return None
        graph = builder.graph(plan.max_weight_bytes)
        partition = Partition.of(len(graph.blocks), plan.split_points)
        memory = MemoryLimit(ceiling_bytes, device, graph, builder.source.examples, self._console).memory_of(partition)
        return memory.scheme(ceiling_bytes) if memory.peak_bytes <= ceiling_bytes else None

    def _announce(self, model: str, builder: Builder, plans: int) -> None:
        round_s = plans * self._kind.sample_s(builder.source.size_bytes)
        most, least = (runs * round_s / 60 for runs in (self._runs, FEWEST_RUNS))
        self._console.print(
            f"measuring {model} on {self._kind.name}, {plans} plans, about {least:.0f} to {most:.0f} minutes"
        )

    def _known(self, model: str, plans: Mapping[str, Plan]) -> dict[str, Any] | None:
        try:
            row: dict[str, Any] = json.loads(self._row_file(model).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        same = {name: Plan.from_json(each) for name, each in row["plans"].items()} == dict(plans)
        return row if same and row["runs"] == self._runs else None

    def _row_file(self, model: str) -> Path:
        return self._folder / f"row-{self._kind.name}-{model.rpartition(':')[2]}.json"


_TAKEN_OVER = (
    "class", "model", "num_blocks", "need", "asked_bytes", "ceiling_bytes", "loads", "ended", "plans_measured",
    "raced_s", "trial", "learned_s", "elapsed_s",
)  # fmt: skip
_SAID = ("cpu", "cpu_model", "threads", "onnxruntime", "storage_read_bytes_per_s")


def _plans(learned: Mapping[str, Any], elsewhere: Mapping[str, Mapping[str, Any]], builder: Builder) -> dict[str, Plan]:
    """Return all plans of a row by their names."""
    plan = Plan.from_json(learned["plan"])
    count = plan.num_stages if plan.num_stages > 1 else UNIFORM_STAGES
    blocks = builder.graph(plan.max_weight_bytes).blocks
    uniform = uniform_bytes([block.weights_bytes for block in blocks], count)
    return {
        "learned": plan,
        "learned, loaded plainly": Plan.plain(plan.split_points, plan.max_weight_bytes),  # as other cuts are
        "optimum": Plan.from_json(learned["optimum"]["plan"]),
        **{f"learned on {name}": Plan.from_json(each["plan"]) for name, each in elsewhere.items()},
        "uniform": Plan.plain(uniform, plan.max_weight_bytes),
        **{f"one stage, {word}": Plan((), (way,)) for word, way in SINGLES.items()},
    }


def _kept(samples: Samples) -> list[dict[str, float] | None]:
    return [None if each is None else {name: each[name] for name in _FIGURES if name in each} for each in samples]


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Learn and measure the models on a class; print what came of it, and perhaps record it."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("served", __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--class", dest="kind", required=True, metavar="NAME", help=f"one of {', '.join(CLASSES)}")
    parser.add_argument("--learn", action="store_true", help="learn the plans of this class, and measure nothing")
    parser.add_argument("--budget", type=at_least(1), default=BUDGET, metavar="N", help="loads (default: %(default)s)")
    parser.add_argument(
        "--runs",
        type=at_least(1),
        default=RUNS,
        metavar="N",
        help="the most samples of each plan (default: %(default)s)",
    )
    options = parser.parse_args(words)
    kind: DeviceClass = class_named(options.kind)
    console, cache = Console(json=False), user_cache()
    folder = cache / _ROOM
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with EmulatedDevice(kind, folder) as emulated:
        learner = Learner(emulated, folder, options.budget, cache, console)
        study = Study(emulated, learner, folder, options.runs, cache, console)
        for model in options.models or MODELS:
            if options.learn:
                learned = learner.learned(model)
                count = len(learned["plan"]["ways"])
                console.print(
                    f"{kind.name}, {model}: {count} stages, {learned['loads']} loads, {learned['elapsed_s'] / 60:.1f} "
                    "minutes"
                )
            else:
                rows.append(study.row(model))
                console.table(f"{kind.name}, {model}", *served_tables.plans([("", {"rows": rows[-1:]})]))
    if options.output and rows:
        write_record(options.output, KIND, "splitload.studies.served", words, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
