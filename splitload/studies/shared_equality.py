"""What shared inferences answer, against the model as it is: `python -m splitload.studies.shared_equality [MODEL …]`.

For each model plans are drawn at random, of few exchanges and of many. Each is written as a collaboration on a bundle,
and both machines run it here, in two threads that have nothing in common but the rows that they send each other.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.cache import user_cache
from splitload.base.errors import StageError
from splitload.base.scratch import scratch_folder
from splitload.bundle.collaboration import SHARED, ProgramStep
from splitload.bundle.read import read_manifest
from splitload.collaborative.levels import Levels
from splitload.collaborative.pieces import Pieces
from splitload.collaborative.search import decoded
from splitload.collaborative.shared_plan import SharedPlan
from splitload.collaborative.store import Planned, write
from splitload.commands.console import Console
from splitload.deploy.share_server import opened
from splitload.deploy.shared_run import PieceRunner
from splitload.frontends import zoo
from splitload.runtime.inputs import example_inputs
from splitload.runtime.stock import stock_session
from splitload.studies.records import write_record
from splitload.studies.shared_subjects import subject
from splitload.studies.study import at_least, errors_in_one_line, study_parser

PLANS, SEED = 50, 0
TOLERATED, FAR = 1e-4, 1e30
_PATIENT_S = 60.0


def row(model: str, count: int, seed: int, folder: Path, console: Console) -> dict[str, Any]:
    """Return how far the answers of random plans are from those of a model, for each the largest of its outputs."""
    source, graph, bundle = subject(model, folder, console)
    feeds = example_inputs(read_manifest(bundle).inputs, source.examples)
    expected = stock_session(str(source.path), None).run(list(graph.outputs), feeds)
    pieces, chance = Pieces(graph), np.random.default_rng(seed)
    found = []
    with console.progress(f"sharing {source.name}", unit="plans") as show:
        for number in range(count):
            show(number, count)
            plan = drawn(pieces.levels, chance)
            place = write(bundle, graph, pieces, [Planned(1.0, plan, 1.0)], folder / "drawn.collaboration")
            answers = answered(place, bundle, feeds)
            errors = [relative_error(answers[name], value) for name, value in zip(graph.outputs, expected, strict=True)]
            found.append({"exchanges": len(plan.exchanges) - 2, "error": max(errors)})
    return {
        "model": model,
        "model_sha256": source.sha256,
        "seed": seed,
        "levels": len(pieces.levels.levels),
        "plans": found,
    }


def relative_error(found: Any, expected: Any) -> float:
    """Return how far an array is from another one, by the largest element of that; `FAR` where it cannot be told."""
    if found.shape != expected.shape:
        return FAR
    error = float(np.abs(found.astype(np.float64) - expected).max() / max(np.abs(expected).max(), 1e-30))
    return error if np.isfinite(error) else FAR


def drawn(levels: Levels, chance: np.random.Generator) -> SharedPlan:
    """Return a plan at random; rows are exchanged at each level with a chance that is drawn as well."""
    exchanged = chance.random(levels.num_units) * chance.uniform(0.5, 1.0)
    return decoded(levels, np.concatenate([exchanged, chance.random(2 * levels.num_units)]))


def answered(folder: Path, bundle: Path, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return what both machines answer together, by the only plan of a collaboration."""
    collaboration = opened(folder, bundle)
    _, _, arm = collaboration.plan_for(1.0, SHARED)
    ways: dict[str, queue.SimpleQueue[Any]] = {name: queue.SimpleQueue() for name in ("device", "server")}
    stores, failed = {}, list[BaseException]()

    def follow(me: str, other: str, steps: Sequence[ProgramStep]) -> None:
        runner = PieceRunner(folder, bundle, collaboration)
        stores[me] = store = runner.store()
        if me == "device":
            level = collaboration.levels[0]
            for name in level.tensors:
                store.put(name, 0, None if level.is_whole else level.num_rows, np.ascontiguousarray(feeds[name]))
        try:
            runner.follow(
                steps, store, lambda _, parts: ways[other].put([np.array(part) for part in parts]),
                lambda _: ways[me].get(timeout=_PATIENT_S),
            )  # fmt: skip
        except BaseException as error:
            failed.append(error)

    threads = [
        threading.Thread(target=follow, args=("device", "server", arm.device)),
        threading.Thread(target=follow, args=("server", "device", arm.server)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise StageError(f"a plan does not run: {failed[0]!r:.300}") from failed[0]
    last = collaboration.levels[-1]
    stop = None if last.is_whole else last.num_rows
    return {name: stores["device"].get(name, 0, stop) for name in last.tensors}


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Try the models; print what came of it, and perhaps record it; 1 where an answer is not that of the model."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("shared_equality", __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all of the zoo")
    parser.add_argument("--plans", type=at_least(1), default=PLANS, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=SEED, metavar="S", help="default: %(default)s")
    options = parser.parse_args(words)
    console, made = Console(json=False), []
    with scratch_folder(user_cache(), ".shared-") as folder:
        for model in options.models or [f"zoo:{name}" for name in zoo.names()]:
            made.append(row(model, options.plans, options.seed, folder, console))
            worst = max(each["error"] for each in made[-1]["plans"])
            console.print(f"{model}: {options.plans} plans, the farthest answer {worst:.1e} relative")
    if options.output:
        write_record(options.output, "shared_equality", "splitload.studies.shared_equality", words, made)
    return int(any(each["error"] > TOLERATED for row in made for each in row["plans"]))


if __name__ == "__main__":
    raise SystemExit(main())
