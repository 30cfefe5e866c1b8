"""Whether today's architectures can be cut and loaded: `python -m splitload.studies.architectures`.

Each is written by torch's exporter with fixed and with open sizes, and made a bundle for every kind of device: whole,
cut in the middle, and cut wherever it can be. Every variant of every bundle, and the loader itself, is run beside a
stock session; with open sizes on inputs of other sizes too. What fails stays in the record, with who failed: the
exporter, onnxruntime with the exporter's file, or splitload. Each export and each architecture has a fresh process.
Exports are kept in the user's cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.entries import is_whole, making
from splitload.base.errors import SplitloadError
from splitload.base.scratch import scratch_folder
from splitload.build.agreement import compare_with_stock
from splitload.build.assemble import VariantPlan, build_bundle
from splitload.commands.console import Console
from splitload.devices import open_device
from splitload.frontends.onnx import Source, load_graph
from splitload.measure.process import python
from splitload.plan.partition import Partition
from splitload.runtime.answers import TOLERANCE, relative_error
from splitload.runtime.inputs import read_feeds
from splitload.runtime.loader import ParallelLoader
from splitload.runtime.stock import stock_session
from splitload.studies.architecture_models import LARGER, MODEL, inputs, names
from splitload.studies.study import at_least, errors_in_one_line, growing_record, study_parser

DEVICES = ("host", "s20")
SIZES = ("fixed", "open")
CUTS = ("whole", "middle", "every block")
_PACKAGES = ("torch", "onnxscript", "transformers", "torchvision", "timm")
_THREADS = 2
Row = dict[str, Any]


class _FailedError(Exception):
    """A process failed; the message is its last line."""


class _StockError(Exception):
    """A stock session does not run the exporter's file on the inputs of the export."""


def try_model(folder: Path, cache: Path, cuts: Sequence[str] = CUTS) -> Iterator[Row]:
    """Yield what became of a model and its inputs, for each device and way to cut it.

    Args:
        folder: With `MODEL` and an .npy file for each input; more inputs may lie in the folder `LARGER` there.
        cache: Where optimised graphs go.
        cuts: Which of `CUTS`.
    """
    for device_name in DEVICES:
        row: Row = {"device": device_name, "cut": None, "num_stages": None, "difference": None}
        row |= {"failed": None, "error": None}
        try:
            device = open_device(device_name, cache)
            source = Source.open(folder / MODEL, "model")
            feeds = read_feeds(inputs(folder))
            graph = load_graph(source, device.graph_kind, cache, feeds=feeds)
            plans = []
            if device.graph_kind == "native":
                portable = load_graph(source, "portable", cache, feeds=feeds)
                plans = [VariantPlan(portable, Partition(len(portable.blocks)), 1)]
        except SplitloadError as error:
            yield {**row, "failed": "splitload", "error": _line(error)}
            continue
        blocks = len(graph.blocks)
        splits = dict(zip(CUTS, ((), (blocks // 2,), range(1, blocks)), strict=True))
        for cut in cuts:
            found = {**row, "cut": cut}
            if cut != CUTS[0] and blocks == 1:
                yield {**found, "failed": "splitload", "error": "there is nowhere to cut"}
                continue
            partition = Partition.of(blocks, splits[cut])
            found |= {"num_stages": partition.num_stages}
            try:
                with scratch_folder(cache, ".bundle-") as made:
                    bundle = made / "model.splitload"
                    build_bundle(bundle, [VariantPlan(graph, partition, _THREADS), *plans], device=device_name)
                    difference = _difference(bundle, folder)
            except SplitloadError as error:
                yield {**found, "failed": "splitload", "error": _line(error)}
            except _StockError as error:
                yield {**found, "failed": "onnxruntime", "error": _line(error)}
            else:
                agrees = difference <= TOLERANCE
                found |= {"difference": difference if difference < float("inf") else None}
                error_line = None if agrees else f"outputs differ by {difference:.2g} of the largest"
                yield {**found, "failed": None if agrees else "splitload", "error": error_line}


def _difference(bundle: Path, folder: Path) -> float:
    """Return the largest relative difference of a bundle's answers from a stock session's."""
    worst = 0.0
    for place in (folder, folder / LARGER):
        if not place.is_dir():
            continue
        feeds = read_feeds(inputs(place))
        with ParallelLoader(bundle, upgrade=False) as model:
            agreement = compare_with_stock(bundle, model.manifest, folder / MODEL, feeds)
            if agreement.untried:
                raise _StockError(agreement.untried)
            outputs = model.run(None, feeds)
        stock = stock_session(folder / MODEL, None)
        worst = max(worst, *agreement.difference.values(), *map(relative_error, outputs, stock.run(None, feeds)))
    return worst


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def try_architecture(name: str, cache: Path, limit_s: float) -> Iterator[Row]:
    """Yield the rows of an architecture, each export and the rest in processes that may take so many seconds."""
    for sizes in SIZES:
        row: Row = {"architecture": name, "sizes": sizes}
        none: Row = {"device": None, "cut": None, "num_stages": None, "difference": None}
        folder = cache / "architectures" / f"{name.replace('/', '-').replace(' ', '-')}-{sizes}-{_versions()}"
        try:
            if not is_whole(folder):
                with making(folder, f"the export of {name}") as made:
                    _run(["splitload.studies.architecture_models", name, sizes, str(made)], limit_s)
        except _FailedError as error:
            yield {**row, **none, "failed": "exporter", "error": str(error)}
            continue
        try:
            printed = _run(["splitload.studies.architectures", "--folder", str(folder)], limit_s)
        except _FailedError as error:
            yield {**row, **none, "failed": "splitload", "error": str(error)}
            continue
        yield from (row | json.loads(line) for line in printed.splitlines())


def _run(words: Sequence[str], limit_s: float) -> str:
    """Run a module in a fresh process; return what it printed.

    Raises:
        _FailedError: If it fails, or takes longer than it may.
    """
    try:
        done = subprocess.run(python(*words), capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise _FailedError(f"not done after {limit_s:g} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise _FailedError(lines[-1].strip()[:300] if lines else f"the process ended with {done.returncode}")
    return done.stdout


def _versions() -> str:
    """Return the versions of what an export is made by."""
    found = []
    for package in _PACKAGES:
        try:
            found.append(version(package))
        except PackageNotFoundError:
            found.append("none")
    return "-".join(found)


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Try every architecture; print and perhaps record what came of it."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("architectures", __doc__)
    parser.add_argument("--only", nargs="+", choices=names(), default=names(), metavar="NAME", help="default: all")
    parser.add_argument("--jobs", type=at_least(1), default=1, metavar="J", help="at a time (default: %(default)s)")
    parser.add_argument("--limit-s", type=at_least(1), default=300, metavar="S", help="of a process (%(default)s)")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # the job of one process
    options = parser.parse_args(words)
    cache = user_cache()
    cache.mkdir(parents=True, exist_ok=True)
    if options.folder is not None:
        with scratch_folder(cache, ".tried-") as graphs:
            for row in try_model(options.folder, graphs):
                print(json.dumps(row))  # noqa: T201
        return 0
    console = Console(json=False)
    with (
        growing_record(options.output, "architectures", "splitload.studies.architectures", words) as keep,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        for name, found in zip(
            options.only,
            pool.map(lambda name: list(try_architecture(name, cache, options.limit_s)), options.only),
            strict=True,
        ):
            failed = [row for row in found if row["error"]]
            console.print(f"{name}: {len(found) - len(failed)} of {len(found)}")
            for row in failed:
                where = ", ".join(row[key] for key in ("sizes", "device", "cut") if row[key])
                console.print(f"  {where}: {row['failed']}: {row['error']}")
            keep(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
