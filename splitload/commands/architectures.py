"""Whether today's architectures can be cut and loaded: `python -m splitload.commands.architectures`.

Each is written by torch's exporter with fixed and with open sizes, then trained for every device, uncut and cut in the
middle, by the command that users call; every variant of every bundle is run beside a stock session. What fails stays in
the record, with who failed: the exporter, onnxruntime with the exporter's file, or splitload. Exports are kept in the
user's cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from splitload.bench.architectures import LARGER, MODEL, inputs, names
from splitload.bundle import read_manifest
from splitload.child import python
from splitload.cli import user_cache
from splitload.commands.console import Console
from splitload.commands.records import write_record
from splitload.commands.study import at_least, one_line, study_parser
from splitload.deploy.agreement import Agreement, compare_with_stock
from splitload.deploy.equality import TOLERANCE
from splitload.errors import SplitloadError
from splitload.inputs import read_feeds
from splitload.scratch import scratch_folder

DEVICES = ("host", "s20")
SIZES = ("fixed", "open")
_PACKAGES = ("torch", "onnxscript", "transformers", "torchvision", "timm")
Row = dict[str, Any]


class _FailedError(Exception):
    """A process failed; the message is its last line."""


def try_architecture(name: str, cache: Path, limit_s: float) -> Iterator[Row]:
    """Yield a row for each way to write, cut and run an architecture.

    Args:
        name: Of `bench.architectures`.
        cache: The user's cache folder.
        limit_s: Seconds that each process may take.
    """
    for sizes in SIZES:
        row: Row = {"architecture": name, "sizes": sizes, "device": None, "cut": None, "num_blocks": None}
        row |= {"num_stages": None, "difference": None, "failed": None, "error": None}
        folder = cache / "architectures" / f"{name.replace('/', '-').replace(' ', '-')}-{sizes}-{_versions()}"
        try:
            if not (folder / MODEL).is_file():
                with scratch_folder(cache, ".export-") as made:
                    _run(["splitload.bench.architectures", name, sizes, str(made)], limit_s)
                    folder.parent.mkdir(exist_ok=True)
                    made.rename(folder)
        except _FailedError as error:
            yield {**row, "failed": "exporter", "error": str(error)}
            continue
        for device in DEVICES:
            yield from _try_device(row, folder, device, cache, limit_s)


def _try_device(row: Row, folder: Path, device: str, cache: Path, limit_s: float) -> Iterator[Row]:
    num_blocks = None
    for cut in (False, True):
        found = {**row, "device": device, "cut": cut, "num_blocks": num_blocks}
        if cut and (num_blocks or 0) < 2:
            yield {**found, "failed": "splitload", "error": "there is nowhere to cut"}
            continue
        with scratch_folder(cache, ".bundle-") as made:
            bundle = made / "model.splitload"
            points = str((num_blocks or 0) // 2) if cut else ""
            words = ["train", str(folder / MODEL), "--device", device, f"--split-points={points}", "-o", str(bundle)]
            words += [word for pair in inputs(folder) for word in ("--input", pair)]
            try:
                result = json.loads(_run(["splitload.cli", *words, "--json"], limit_s))
                num_blocks = result["plan"]["num_blocks"]
                found |= {"num_blocks": num_blocks, "num_stages": result["plan"]["num_stages"]}
                differences = [_differences(result["agreement"])]
                if (folder / LARGER).is_dir():
                    feeds = read_feeds(inputs(folder / LARGER))
                    larger: Agreement = compare_with_stock(bundle, read_manifest(bundle), folder / MODEL, feeds)
                    differences.append(_differences(larger.to_json()))
            except (_FailedError, SplitloadError) as error:
                yield {**found, "failed": "splitload", "error": " ".join(str(error).split())}
                continue
            except _StockError as error:
                yield {**found, "failed": "onnxruntime", "error": str(error)}
                continue
        difference = max(value for each in differences for value in each)
        error = None if difference <= TOLERANCE else f"outputs differ by {difference:.2g} of the largest"
        number = difference if difference < float("inf") else None
        yield {**found, "difference": number, "failed": error and "splitload", "error": error}


class _StockError(Exception):
    """A stock session does not run the exporter's file on the inputs of the export."""


def _differences(agreement: Row) -> list[float]:
    if agreement["untried"]:
        raise _StockError(agreement["untried"])
    return [float("inf") if value is None else value for value in agreement["difference"].values()]


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


@one_line
def main(words: Sequence[str] | None = None) -> int:
    """Try every architecture; print and perhaps record what came of it."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("architectures", __doc__)
    parser.add_argument("--only", nargs="+", choices=names(), default=names(), metavar="NAME", help="default: all")
    parser.add_argument("--jobs", type=at_least(1), default=1, metavar="J", help="at a time (default: %(default)s)")
    parser.add_argument("--limit-s", type=at_least(1), default=300, metavar="S", help="of a process (%(default)s)")
    options = parser.parse_args(words)
    console = Console(json=False)
    cache = user_cache()
    cache.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        tried: Callable[[str], list[Row]] = lambda name: list(try_architecture(name, cache, options.limit_s))  # noqa: E731
        for found in pool.map(tried, options.only):
            rows += found
            failed = [row for row in found if row["error"]]
            console.print(f"{found[0]['architecture']}: {len(found) - len(failed)} of {len(found)}")
            for row in failed:
                console.print(f"  {row['sizes']} {row['device']} {'cut' if row['cut'] else 'uncut'}: {row['error']}")
    if options.output:
        write_record(options.output, "architectures", "splitload.commands.architectures", words, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
