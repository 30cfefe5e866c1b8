"""`splitload profile`: what loading and running a model costs, block by block."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from splitload.bundle.replace import check_output_file
from splitload.commands.console import Console, shortened
from splitload.devices import open_device
from splitload.devices.stored import write_profile
from splitload.planner.read_model import read_and_profile
from splitload.runtime.inputs import read_feeds


def profile(options: argparse.Namespace, console: Console, cache: Path) -> dict[str, Any]:
    """Measure or simulate every block; return what `--json` prints, which is the profile.

    Raises:
        SplitloadError: If the model cannot be read or measured, or the file not written.
    """
    output = Path(options.output) if options.output else None
    if output:
        check_output_file(output, "profile")
    device = open_device(options.device, cache, refresh=True, page_cache=options.page_cache)
    feeds = read_feeds(options.input)
    _, _, made = read_and_profile(options.model, device, console, cache, feeds, max_blocks=options.max_blocks)
    if output:
        write_profile(output, made)
    whole = made.whole()
    console.table(
        f"{made.model} on {made.device}, {made.source}: load, first and steady inference of each block",
        ("block", "part of the model", "MB", "load alone ms", "first ms", "steady ms"),
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
    start_s, cut_infer_s = made.contention.start_s, made.contention.cut_infer_s
    if start_s or cut_infer_s:
        console.print(
            f"besides: {start_s * 1e3:.2f} ms until loading starts, and in a cut {cut_infer_s * 1e3:.2f} ms for the "
            "first inference of each stage"
        )
    if output:
        console.print(f"profile: {output}")
    return made.to_json()
