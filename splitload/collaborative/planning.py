"""From a bundle and two machines to a collaboration: units are measured on both, a plan is searched for each link."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.base.errors import UsageError
from splitload.bundle.read import read_manifest
from splitload.collaborative.costs import Costs, Link
from splitload.collaborative.levels import Levels
from splitload.collaborative.operators import count_operators
from splitload.collaborative.pieces import Pieces
from splitload.collaborative.profile import measure_costs
from splitload.collaborative.search import Saving, search
from splitload.collaborative.segment_costs import SegmentCosts
from splitload.collaborative.shared_plan import SharedPlan
from splitload.collaborative.store import Planned, write
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs.row_pieces import Range
from splitload.planner.parallel import run_all

if TYPE_CHECKING:
    from splitload.devices import Measuring
    from splitload.planner.report import Report

STEP_BYTES_PER_S, MOST_STEPS = 1_000_000, 50
LATENCY_S = 0.0005
_LINKS_AT_A_TIME = 13  # of which a process searches plans, and begins with what it knows of segments


@dataclass(frozen=True)
class PlannedCollaboration:
    """What planning came to.

    Attributes:
        folder: Where it was written.
        plans: One for each link.
        levels: How many places of exchange there are.
        local_share: The share of floating-point operations that can be done row by row.
        is_whole: Whether no place has rows, so that plans are cuts between layers.
    """

    folder: Path
    plans: tuple[Planned, ...]
    levels: int
    local_share: float
    is_whole: bool


def plan_collaboration(
    bundle: Path,
    source: Source,
    device: Measuring,
    server: Measuring,
    report: Report,
    cache: Path,
    *,
    feeds: Mapping[str, Any],
    latency_s: float = LATENCY_S,
    seed: int = 0,
    saving: Saving | None = None,
    target: Path | None = None,
) -> PlannedCollaboration:
    """Measure a bundle's model on two machines, plan for links of 0 to 50 MB/s, and write the collaboration.

    Args:
        bundle: The bundle.
        source: Its model.
        device: The machine that has the inputs.
        server: The other one.
        report: Where to tell what is done.
        cache: The user's cache folder.
        feeds: Inputs, whose sizes the plans are for; made up where missing.
        latency_s: Of the link, in each direction.
        seed: Of the search.
        saving: How energy counts; None where latency does.
        target: Where it is written; None for the place beside the bundle.

    Raises:
        UsageError: If the bundle is of another model, or the machines cannot run the same graphs.
        SplitloadError: If it cannot be measured or written.
    """
    manifest = read_manifest(bundle)
    if manifest.model_sha256 != source.sha256:
        raise UsageError(f"'{bundle}' is a bundle of another model than {source.name}; give the model it was made of")
    kinds = {variant.kind: variant for variant in manifest.variants}
    if "native" not in kinds:
        raise UsageError(f"'{bundle}' has no native variant, which its collaboration would read; make it again")
    machines = (device.environment.get("cpu"), server.environment.get("cpu"))
    if any(each not in (None, kinds["native"].cpu) for each in machines):
        raise UsageError(
            f"'{bundle}' was made for {kinds['native'].cpu}, the device is {machines[0]} and the server {machines[1]}: "
            "machines share inferences of a bundle that is native on both"
        )
    graph = load_graph(source, "native", cache, feeds=feeds)
    pieces = Pieces(graph)
    costs = Costs(measure_costs(pieces, graph, device, report), measure_costs(pieces, graph, server, report))
    plans = plans_for(
        pieces, costs, [step * STEP_BYTES_PER_S for step in range(MOST_STEPS + 1)], latency_s, seed, report, saving
    )
    folder = write(bundle, graph, pieces, plans, target)
    levels = pieces.levels.levels
    is_whole = all(level.num_rows == 1 for level in levels[1:])
    return PlannedCollaboration(folder, tuple(plans), len(levels), count_operators(graph).local_share, is_whole)


def plans_for(
    pieces: Pieces,
    costs: Costs,
    speeds: Sequence[float],
    latency_s: float,
    seed: int,
    report: Report,
    saving: Saving | None = None,
) -> list[Planned]:
    """Return the best plan that is found for each link; most searches begin with the plan of the link before.

    Some links are searched in processes beside each other.

    Args:
        pieces: Of the model.
        costs: Of both machines.
        speeds: What links carry, in bytes per second, ascending; 0 for none.
        latency_s: Of each.
        seed: Of the search.
        report: Where to tell what is done.
        saving: How energy counts; None where latency does.
    """
    jobs = [
        (pieces.levels, costs, speeds[at : at + _LINKS_AT_A_TIME], latency_s, seed, saving)
        for at in range(0, len(speeds), _LINKS_AT_A_TIME)
    ]
    found: list[Planned] = []
    with report.progress("searching plans", unit="links") as show:

        def done(some: list[Planned]) -> None:
            found.extend(some)
            show(len(found), len(speeds))

        show(0, len(speeds))
        run_all(_some_plans, jobs, on_done=done)
    return found


def _some_plans(
    levels: Levels, costs: Costs, speeds: Sequence[float], latency_s: float, seed: int, saving: Saving | None
) -> list[Planned]:
    """Return the plans for some of the links, one after the other."""
    segment_costs, alone = SegmentCosts(levels, costs), SharedPlan.device_only(levels)
    found: list[Planned] = []
    before: tuple[SharedPlan, ...] = ()
    for bytes_per_s in speeds:
        if bytes_per_s <= 0:
            alone_s = costs.device.segment_s(
                [(level, Range(0, each.num_rows)) for level, each in enumerate(levels.levels) if level]
            )
            taken_j = None if saving is None else saving.power.computing_w * alone_s
            found.append(Planned(0.0, alone, alone_s, {"device": (alone, alone_s)}, energy_j=taken_j))
            continue
        best = search(segment_costs, Link(bytes_per_s, latency_s), seed=seed, begin=before, saving=saving)
        before = (best.plan,)
        found.append(
            Planned(float(bytes_per_s), best.plan, best.latency_s, best.baselines, best.optimum, best.energy_j)
        )
    return found
