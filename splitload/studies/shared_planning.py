"""What it takes to plan a collaboration: `python -m splitload.studies.shared_planning [MODEL …]`.

This machine stands for the device and for the server. Units are measured on both, a plan is searched for each of 51
links, and the folder is written: what `splitload collaborate plan` does, from the bundle on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.scratch import scratch_folder
from splitload.bundle.read import read_manifest
from splitload.collaborative.planning import plan_collaboration
from splitload.commands.console import Console
from splitload.devices.host import HostDevice
from splitload.studies.records import write_record
from splitload.studies.shared import MODELS
from splitload.studies.shared_subjects import subject
from splitload.studies.study import errors_in_one_line, study_parser


def row(model: str, folder: Path, console: Console) -> dict[str, Any]:
    """Return how long planning takes, and what it writes beside the bundle."""
    cache = user_cache()
    source, _, bundle = subject(model, folder, console)
    host, start_s = HostDevice(cache), time.perf_counter()
    found = plan_collaboration(bundle, source, host, host, console, cache, feeds=source.examples)
    seconds = time.perf_counter() - start_s
    files = {file.name: file.bytes for file in read_manifest(bundle).files()}
    return {
        "model": model,
        "model_sha256": source.sha256,
        "links": len(found.plans),
        "planning_s": seconds,
        "bundle_bytes": sum(files.values()),
        "beside_bytes": sum(each.stat().st_size for each in found.folder.iterdir()),
        "exact": sum(each.optimum is not None and each.optimum.is_exact for each in found.plans),
    }


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Plan the models; print what it took, and perhaps record it."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("shared_planning", __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    options = parser.parse_args(words)
    console, made = Console(json=False), []
    with scratch_folder(user_cache(), ".shared-") as folder:
        for model in options.models or MODELS:
            made.append(row(model, folder, console))
            console.print(
                f"{model}: {made[-1]['links']} links in {made[-1]['planning_s']:.0f} s, "
                f"{made[-1]['beside_bytes'] / made[-1]['bundle_bytes']:.1%} of the bundle's bytes beside it"
            )
    if options.output:
        write_record(options.output, "shared_planning", "splitload.studies.shared_planning", words, made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
