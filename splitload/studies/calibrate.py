"""What of `s20` is fitted to Table 1, and how well it explains it: `python -m splitload.studies.calibrate --help`."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitload.agents import exact
from splitload.base.cache import user_cache
from splitload.commands.console import Console
from splitload.devices import names
from splitload.devices.simulated import DeviceModel, SimulatedDevice
from splitload.envs.costs import cost_matrices
from splitload.frontends import open_source
from splitload.frontends.onnx import load_graph
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition
from splitload.studies.records import write_record
from splitload.studies.study import errors_in_one_line, study_parser

NUM_STAGES = 4
# Seconds to load, whole and as four children. Source: Table 1 of the ICLR 2021 submission, Galaxy S20.
# The table's cut ends are indices into other graphs than ours and cannot be repeated: the four stages are our own.
TABLE_1: Mapping[str, Mapping[str, float]] = {
    "zoo:lowlight": {"original": 0.228, "proposed": 0.090},
    "zoo:mobilenet_v1": {"original": 0.212, "proposed": 0.088},
    "zoo:inception_v3": {"original": 0.960, "proposed": 0.430},
}
START: Mapping[str, float] = {"prepare_bytes_per_s": 500e6, "node_s": 0.003, "serial_share": 0.2}
WITHOUT: Mapping[str, float] = {"prepare_bytes_per_s": 1e15, "node_s": 0.0, "serial_share": 0.0}
# By name the parameters that are free; of `START`, the others stand as in `WITHOUT`, where they have no effect.
FITS: Mapping[str, tuple[str, ...]] = {
    "bytes, nodes and serial share": tuple(START),
    "bytes and serial share": ("prepare_bytes_per_s", "serial_share"),
    "nodes and serial share": ("node_s", "serial_share"),
    "bytes and nodes": ("prepare_bytes_per_s", "node_s"),
}
_FIRST_STEP, _LAST_STEP = 0.4, 2e-3  # of the search, in logarithms: the last is finer than three digits


@dataclass(frozen=True, slots=True)
class Loaded:
    """How long a simulated device loads one model.

    Attributes:
        original_s: Seconds for the whole model as one stage.
        proposed_s: Seconds until the last of `NUM_STAGES` stages of nearly equal load times is loaded.
        split_points: Where these are cut: the exact optimum of the balance objective.
        stages: Weight bytes and graph nodes of each.
    """

    original_s: float
    proposed_s: float
    split_points: tuple[int, ...]
    stages: tuple[tuple[int, int], ...]


def simulate_loading(model: DeviceModel, graph: ModelGraph) -> Loaded:
    """Return how long the device loads the model, whole and in `NUM_STAGES` stages.

    Raises:
        ValueError: If the model has fewer blocks.
    """
    profile = SimulatedDevice(model).profile(graph)
    split_points, _ = exact.balance(cost_matrices(profile).load_s, NUM_STAGES)
    partition = Partition(profile.num_blocks, split_points)
    stages = (graph.blocks[start:end] for start, end in partition.stages())
    return Loaded(
        profile.whole().load_s,
        profile.schedule(partition).load_makespan_s,
        split_points,
        tuple((sum(block.weights_bytes for block in blocks), blocks[-1].end - blocks[0].start) for blocks in stages),
    )


def residuals(loaded: Loaded, observed_s: Mapping[str, float]) -> dict[str, float]:
    """Return simulated ÷ observed - 1 of both columns."""
    return {
        "original": loaded.original_s / observed_s["original"] - 1,
        "proposed": loaded.proposed_s / observed_s["proposed"] - 1,
    }


def fit(
    base: DeviceModel,
    free: Sequence[str],
    graphs: Mapping[str, ModelGraph],
    observed_s: Mapping[str, Mapping[str, float]],
) -> DeviceModel:
    """Return the device with its free parameters fitted, to three digits.

    Least squares of the logarithms of simulated ÷ observed, so that every figure counts by its relative error.

    Args:
        base: The device; what is in `START` is replaced.
        free: Which of `START` are fitted. The others have no effect.
        graphs: The models' portable graphs, by name.
        observed_s: Seconds by model and column, "original" and "proposed".
    """

    def device(logarithms: NDArray[np.float64]) -> DeviceModel:
        # Rounded here and not afterwards: the best place may lie beside a jump.
        values = {**WITHOUT, **{key: float(f"{math.exp(x):.3g}") for key, x in zip(free, logarithms, strict=True)}}
        return replace(
            base,
            prepare_bytes_per_s=values["prepare_bytes_per_s"],
            node_s=values["node_s"],
            serial_share=min(values["serial_share"], 1.0),
        )

    def squares(logarithms: NDArray[np.float64]) -> float:
        model = device(logarithms)
        return sum(
            math.log1p(residual) ** 2
            for name, graph in graphs.items()
            for residual in residuals(simulate_loading(model, graph), observed_s[name]).values()
        )

    return device(minimum(squares, np.log([START[key] for key in free])))


def minimum(value: Callable[[NDArray[np.float64]], float], start: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where `value` is smallest near `start`, by a pattern search.

    Every neighbour one step away, diagonals among them, is tried, and the first better one taken; where there is
    none the step is halved. No derivative is needed, and there is none: where the best cut moves, load times jump.
    """
    place, smallest, step = start, value(start), _FIRST_STEP
    directions = [np.array(each) for each in itertools.product((-1, 0, 1), repeat=len(start)) if any(each)]
    while step > _LAST_STEP:
        for direction in directions:
            found = value(place + step * direction)
            if found < smallest:
                place, smallest = place + step * direction, found
                break
        else:
            step /= 2
    return place


def fit_row(
    name: str, model: DeviceModel, graphs: Mapping[str, ModelGraph], observed_s: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Return what the record holds of one fit: its parameters, and beside every observation what they make of it."""
    models: list[dict[str, Any]] = []
    for model_name, graph in graphs.items():
        loaded = simulate_loading(model, graph)
        models.append(
            {
                "model": model_name,
                "model_sha256": graph.source_sha256,
                "num_blocks": len(graph.blocks),
                "weights_bytes": sum(weights_bytes for weights_bytes, _ in loaded.stages),
                "num_nodes": sum(num_nodes for _, num_nodes in loaded.stages),
                "split_points": list(loaded.split_points),
                "stages": [{"weights_bytes": size, "num_nodes": nodes} for size, nodes in loaded.stages],
                "observed_s": dict(observed_s[model_name]),
                "simulated_s": {"original": loaded.original_s, "proposed": loaded.proposed_s},
                "residual": residuals(loaded, observed_s[model_name]),
            }
        )
    every = [residual for row in models for residual in row["residual"].values()]
    parameters = {key: value for key, value in asdict(model).items() if key not in ("name", "description")}
    return {
        "fit": name,
        "free": list(FITS[name]),
        "parameters": parameters,
        "rms_residual": math.sqrt(sum(residual**2 for residual in every) / len(every)),
        "models": models,
    }


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Fit, print what was found beside simpler fits, and write a record."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("calibrate", __doc__)
    options = parser.parse_args(words)
    console = Console(json=False)
    cache = user_cache()
    path = names()["s20"]
    assert path is not None  # noqa: S101, simulated devices have a file
    base = SimulatedDevice.read(path).model
    graphs = {name: load_graph(open_source(name, cache), "portable", cache) for name in TABLE_1}
    rows = [fit_row(name, fit(base, free, graphs, TABLE_1), graphs, TABLE_1) for name, free in FITS.items()]
    for row in rows:
        fitted = ", ".join(f"{key} = {row['parameters'][key]:.3g}" for key in row["free"])
        console.table(
            f"{row['fit']}: {fitted}; residuals {row['rms_residual']:.1%} (root mean square)",
            ("model", "load", "observed ms", "simulated ms", "residual %"),
            [
                (
                    model["model"],
                    column,
                    f"{seconds * 1e3:.0f}",
                    f"{model['simulated_s'][column] * 1e3:.1f}",
                    f"{model['residual'][column] * 100:.1f}",
                )
                for model in row["models"]
                for column, seconds in model["observed_s"].items()
            ],
        )
    if options.output:
        write_record(options.output, "calibration", "splitload.studies.calibrate", words, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
