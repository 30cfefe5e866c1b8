"""Client libraries on bundles: `python -m splitload.studies.clients`.

Packages that wrap `onnxruntime.InferenceSession` are installed from the package index into a folder each, their models
become bundles (for `s20`, which is quick), and each computes the same twice, in fresh processes: by stock sessions, and
with `splitload.InferenceSession` in their place. Where a package brings no model, the zoo's MobileNet-V1 stands in.
Packages and models take about 1.5 GB while it runs, and are deleted unless `--folder` keeps them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.errors import StageError, UsageError
from splitload.bundle.replace import refuse_in_bundle
from splitload.commands.console import Console
from splitload.frontends import zoo
from splitload.measure.process import python
from splitload.studies.client_calls import CLIENTS, Client
from splitload.studies.records import write_record
from splitload.studies.study import errors_in_one_line, study_parser

TOLERANCE = 1e-3  # of the largest number in an answer; the s20 bundles are portable, and rounded in another order
CALL_S, INSTALL_S = 300, 900


def row_of(name: str, folder: Path, stand_in: Path) -> dict[str, Any]:
    """Return what the record holds of a client.

    Args:
        name: One of `CLIENTS`.
        folder: Where it is installed, and its bundles are written.
        stand_in: Model of the clients that bring none.
    """
    client = CLIENTS[name]
    row: dict[str, Any] = {"client": name, "version": None, "stand_in": not client.models}
    try:
        packages = folder / "packages"
        row["version"] = _install(name, client, packages)
        models = sorted(file for pattern in client.models for file in packages.glob(pattern)) or [stand_in]
        bundles, refused = _bundles(models, folder)
        row |= {"models": len(models), "bundles": len(bundles), "refused": refused}
        stock = _call(name, packages, models, [])
        ours = _call(name, packages, models, bundles)
        row |= {"sessions": ours["sessions"], "from_bundles": ours["from_bundles"], "plain": ours["reasons"]}
        row["difference"] = difference(stock["result"], ours["result"])
        row["error"] = None if row["difference"] <= TOLERANCE else "the answers differ"
        if not bundles or not row["from_bundles"]:
            row["error"] = row["error"] or "no session came from a bundle"
    except StageError as error:
        row["error"] = str(error).replace(str(folder), name)
    return row


def difference(one: Any, other: Any) -> float:
    """Return by how much two answers differ: numbers as a share of the largest, 1 for anything else that is unequal."""
    flat, also = list(_flat(one)), list(_flat(other))
    if len(flat) != len(also) or not flat:
        return 1.0
    numbers = [abs(each) for each in flat if isinstance(each, float)]
    scale = max(numbers, default=0.0) or 1.0
    apart = [
        abs(a - b) / scale if isinstance(a, float) and isinstance(b, float) else float(a != b)
        for a, b in zip(flat, also, strict=True)
    ]
    return max(apart)


def _flat(value: Any) -> Iterable[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _flat(each)
    else:
        yield value


def _install(name: str, client: Client, packages: Path) -> str:
    """Install a client and what it needs, unless the folder has it; return its version."""
    if not packages.is_dir():
        words = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(packages)]
        _run(python("pip", *words, name, *client.needs), INSTALL_S)
    found = metadata.distributions(name=name, path=[str(packages)])
    return next(iter(found)).version


def _bundles(models: Sequence[Path], folder: Path) -> tuple[list[Path], list[str]]:
    """Return bundles of the models, and why some have none."""
    made, refused = [], []
    for number, model in enumerate(models):
        target = folder / f"{number}-{model.stem}.splitload"
        words = ("train", str(model), "--device", "s20", "--max-stages", "3", "-o", str(target))
        try:
            if not target.is_dir():
                _run(python("splitload.cli", *words), INSTALL_S)
            made.append(target)
        except StageError as error:
            refused.append(f"{model.name}: {error}".replace(str(folder), folder.name))
    return made, refused


def _call(name: str, packages: Path, models: Sequence[Path], bundles: Sequence[Path]) -> dict[str, Any]:
    """Have a client compute in a fresh process."""
    lists = (json.dumps([str(each) for each in paths]) for paths in (models, bundles))
    out = _run(python("splitload.studies.client_calls", name, str(packages), *lists), CALL_S)
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


def _run(command: Sequence[str], limit_s: float) -> str:
    """Return what a command prints.

    Raises:
        StageError: With its last line, if it fails or takes too long.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise StageError(f"it took more than {limit_s} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise StageError(lines[-1][:300])
    return done.stdout


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Try each client, and write a record; return 1 if one fails."""
    words = list(sys.argv[1:] if words is None else words)
    options = _parser().parse_args(words)
    if unknown := [name for name in options.clients if name not in CLIENTS]:
        raise UsageError(f"no client is called '{unknown[0]}'; give some of {', '.join(CLIENTS)}")
    if options.folder is not None:
        refuse_in_bundle(options.folder)
    console = Console(json=False)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        stand_in = zoo.path("mobilenet_v1", user_cache())
        for name in options.clients or CLIENTS:
            folder = (options.folder or Path(scratch)).absolute() / name
            folder.mkdir(parents=True, exist_ok=True)
            with console.status(f"trying {name}"):
                row = row_of(name, folder, stand_in)
            rows.append(row)
            said = row["error"] or f"ok, {row['from_bundles']} of {row['sessions']} sessions from bundles"
            console.print(f"{name} {row['version'] or ''}: {said}")
    if options.output:
        write_record(options.output, "clients", "splitload.studies.clients", _without_folder(words), rows)
    return int(any(row["error"] for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("clients", __doc__)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(CLIENTS)} (default: all)")
    parser.add_argument("--folder", type=Path, help="keep packages and bundles here, for another run")
    return parser


def _without_folder(words: Sequence[str]) -> list[str]:
    """Return the words without the folder, which is of one machine only."""
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--folder="):
            skip = word == "--folder"
            if not skip:
                kept.append(word)
        else:
            skip = False
    return kept


if __name__ == "__main__":
    raise SystemExit(main())
