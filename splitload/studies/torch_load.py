"""Time to first output of a torch module, loaded in several ways: `python -m splitload.studies.torch_load --help`.

Each sample is a fresh process; the arms take turns. Beside them the bandwidth of a plain copy is measured, and so is
told in what time the bytes alone could be moved: on a GPU from pinned memory, on the processor from memory to memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.errors import StageError
from splitload.base.phrases import milliseconds
from splitload.base.scratch import scratch_folder
from splitload.commands.console import Console
from splitload.measure import pagecache
from splitload.measure.fresh import run_job
from splitload.measure.job import LoadModule
from splitload.measure.sampling import summarize
from splitload.studies.records import write_record
from splitload.studies.study import at_least, errors_in_one_line, study_parser

ARMS = ("splitload", "safetensors", "torch.load-mmap", "torch.load")  # of `measure/modules.py`
FIGURES = ("device", "dtype", "layers", "width", "tokens")
_TOLERANCE = 2e-2  # of the largest magnitude; half precision on a GPU is the widest


def measured(job: dict[str, Any], arm: str) -> dict[str, Any]:
    """Return what a fresh process answers.

    Args:
        job: The figures of `LoadModule`, and the "folder" with the files of every arm.
        arm: What it does.

    Raises:
        StageError: If it fails.
    """
    figures = {key: job[key] for key in FIGURES}
    return run_job(
        LoadModule(arm=arm, **figures), Path(job["folder"]), lambda line: StageError(f"arm '{arm}' failed: {line}")
    )


def samples_of(job: dict[str, Any], runs: int, cold: bool, console: Console) -> dict[str, list[dict[str, Any]]]:
    """Return `runs` samples of each arm, of whole rounds; each with the time its bytes take to be copied, `limit_s`.

    Raises:
        StageError: If an arm fails, or computes something else than the others.
    """
    files = [path for path in Path(job["folder"]).rglob("*") if path.is_file()]
    samples: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    expected: list[float] | None = None
    with console.progress("measuring", unit="rounds") as show:
        for turn in range(runs):
            show(turn, runs)
            limit_s = job["model_bytes"] / measured(job, "copy")["bytes_per_s"]
            for place in range(len(ARMS)):
                arm = ARMS[(turn + place) % len(ARMS)]
                if cold:
                    pagecache.evict(files)
                sample = measured(job, arm)
                output = sample.pop("output")
                expected = expected or output
                if max(abs(a - b) for a, b in zip(expected, output, strict=True)) > _TOLERANCE * max(
                    map(abs, expected)
                ):
                    raise StageError(f"arm '{arm}' computes something else: {output}, expected {expected}")
                samples[arm].append({**sample, "limit_s": limit_s})
    return samples


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Measure every arm, in turns; print and perhaps record the times."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("torch_load", __doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--layers", type=at_least(1), default=14, metavar="N", help="(default: %(default)s, 1.1 GB)")
    parser.add_argument("--width", type=at_least(64), default=1280, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--tokens", type=at_least(1), default=16, metavar="N", help="of an input (default: %(default)s)"
    )
    parser.add_argument("--runs", type=at_least(1), default=9, metavar="N", help="rounds (default: %(default)s)")
    parser.add_argument("--cold", action="store_true", help="evict the files before each sample")
    options = parser.parse_args(words)
    if options.width % 64:
        parser.error("--width must be a multiple of 64")
    if options.cold:
        pagecache.check()
    console = Console(json=False)
    model = {key: getattr(options, key) for key in FIGURES}
    cache = user_cache()
    cache.mkdir(parents=True, exist_ok=True)
    with scratch_folder(cache, ".torch-") as folder:
        job = {**model, "folder": str(folder)}
        with console.status("writing the files of every arm"):
            job |= measured(job, "prepare")
        samples = samples_of(job, options.runs, options.cold, console)
    rows = []
    for arm, found in samples.items():
        figures: dict[str, Any] = {
            key: {**figure, "samples": [each[key] for each in found]} for key, figure in summarize(found).items()
        }
        times = [milliseconds(figures["ttfo_s"][key]) for key in ("median", "min", "max")]
        console.print(
            f"{arm:<16} {times[0]} ({times[1]} to {times[2]}), limit {milliseconds(figures['limit_s']['median'])}"
        )
        rows.append(
            {
                **model,
                "gpu": job["gpu"],
                "model_bytes": job["model_bytes"],
                "num_stages": job["num_stages"] if arm == "splitload" else None,
                "page_cache": "cold" if options.cold else "warm",
                "arm": arm,
                "source": "measured",
                **figures,
            }
        )
    if options.output:
        write_record(options.output, "torch_load", "splitload.studies.torch_load", words, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
