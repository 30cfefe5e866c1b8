"""`splitload profile` and `splitload bench`: what loading costs, block by block and beside what else one would do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from splitload.bench import Arm, run_arms, summarize
from splitload.bundle import read_manifest
from splitload.commands.console import Console, count_of, shortened
from splitload.commands.plans import prepare, write_bundle
from splitload.commands.search import Search
from splitload.deploy.build import Plan
from splitload.devices import open_device
from splitload.devices.host import write_profile
from splitload.errors import OutputError, UsageError
from splitload.frontends.onnx import Source
from splitload.graph import ModelGraph
from splitload.inputs import read_feeds
from splitload.profile import Profile
from splitload.provenance import provenance


def profile(options: argparse.Namespace, console: Console, cache: Path) -> dict[str, Any]:
    """Measure or simulate every block; return what `--json` prints, which is the profile.

    Raises:
        SplitloadError: If the model cannot be read or measured, or the file not written.
    """
    output = Path(options.output) if options.output else None
    if output and not output.parent.is_dir():
        raise OutputError(f"there is no folder '{output.parent}' to write '{output.name}' into")
    device = open_device(options.device, cache, refresh=True)
    _, _, made = prepare(options, console, cache, device, read_feeds(options.input))
    if output:
        write_profile(output, made)
    whole = made.whole()
    console.table(
        f"{made.model} on {made.device}, {made.source}: load, first and steady inference of each block",
        ("block", "part of the model", "MB", "load ms", "first ms", "steady ms"),
        [
            (
                str(number),
                shortened(block.name),
                f"{block.weights_bytes / 1e6:.2f}",
                f"{block.cost.load_s * 1e3:.2f}",
                f"{block.cost.first_inference_s * 1e3:.2f}",
                f"{block.cost.inference_s * 1e3:.2f}",
            )
            for number, block in enumerate(made.blocks)
        ],
    )
    console.print(
        f"whole model: load {whole.load_s * 1e3:.2f} ms, first inference {whole.first_inference_s * 1e3:.2f} ms, "
        f"inference {whole.inference_s * 1e3:.2f} ms; each stage pays {made.stage_fixed_s * 1e3:.2f} ms"
    )
    if output:
        console.print(f"profile: {output}")
    return made.to_json()


def bench(options: argparse.Namespace, console: Console, cache: Path) -> dict[str, Any]:
    """Compare the bundle with a stock and a tuned session; return what `--json` prints.

    Raises:
        SplitloadError: If the model cannot be read or an arm fails.
    """
    device = open_device("host", cache)
    feeds = read_feeds(options.input)
    source, graph, measured = prepare(options, console, cache, device, feeds)
    bundle = Path(options.bundle) if options.bundle else _bundle(options, console, cache, source, graph, measured)
    manifest = read_manifest(bundle)
    if manifest.model_sha256 != source.sha256:
        raise UsageError(f"'{bundle}' is a bundle of '{manifest.model}', not of {options.model}")
    arms = [Arm("stock", source.path), Arm("tuned", graph.path), Arm("splitload", bundle)]
    with console.progress("benchmark", unit="samples") as show:
        samples = run_arms(arms, graph.input_tensors(), feeds, options.runs, show)
    summary = {name: summarize(rows) for name, rows in samples.items()}
    stock_s = summary["stock"]["ttfo_s"]["median"]
    split_points = manifest.plan.get("split_points", [])
    console.table(
        f"{graph.name}: medians (min-max) of {options.runs} fresh process(es) an arm, in turns, warm page cache",
        ("", *summary),
        [
            ("TTFO ms", *(_spread(row["ttfo_s"], 1e3) for row in summary.values())),
            ("load ms", *(_spread(row["load_s"], 1e3) for row in summary.values())),
            ("first ms", *(_spread(row["first_inference_s"], 1e3) for row in summary.values())),
            ("steady ms", *(_spread(row["steady_inference_s"], 1e3) for row in summary.values())),
            ("peak MiB", *(_spread(row["peak_memory_bytes"], 1 / (1 << 20)) for row in summary.values())),
            ("÷ stock", *(f"{row['ttfo_s']['median'] / stock_s:.3f}" for row in summary.values())),
        ],
    )
    console.print(f"splitload: {count_of(len(split_points) + 1, 'stage')}, split points {split_points}")
    return {
        "kind": "bench",
        "schema_version": 1,
        "model": options.model,
        "model_sha256": source.sha256,
        "model_bytes": source.size_bytes,
        "runs": options.runs,
        "page_cache": "warm",
        "source": "measured",
        "plan": {"num_stages": len(split_points) + 1, "split_points": split_points},
        "arms": summary,
        "samples": samples,
        "provenance": provenance(["splitload", *options.words]),
    }


def _bundle(
    options: argparse.Namespace, console: Console, cache: Path, source: Source, graph: ModelGraph, measured: Profile
) -> Path:
    """Make the bundle that `train --device host --objective ttfo` makes, in the cache."""
    with console.status("searching a plan"):
        found = Search(measured, objective="ttfo").run()
    target = cache / "bench" / f"{source.sha256[:24]}.splitload"
    target.parent.mkdir(parents=True, exist_ok=True)
    notes = {"objective": "ttfo", "split_points": list(found.partition.split_points)}
    plan = Plan(graph, found.partition, measured.contention.threads)
    write_bundle(target, source, plan, console, cache, device="host", notes=notes)
    return target


def _spread(figure: dict[str, float], scale: float) -> str:
    return f"{figure['median'] * scale:.1f} ({figure['min'] * scale:.1f}-{figure['max'] * scale:.1f})"
