"""Tables from the records in results/: `python -m splitload.studies.records` writes them, `--check` compares."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from splitload.base.atomic import write_text
from splitload.base.errors import UsageError
from splitload.measure.provenance import provenance
from splitload.studies import (
    architecture_tables,
    bench_tables,
    build_tables,
    client_tables,
    crowd_tables,
    emulated_tables,
    fault_tables,
    matrix_tables,
    memory_table,
    personal_tables,
    plan_tables,
    residency_tables,
    served_tables,
    shared_other_tables,
    shared_tables,
    size_tables,
    whole_tables,
)

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = tuple(  # that have tables
    ROOT / name
    for name in (
        "README.md",
        "docs/measuring.md",
        "docs/memory.md",
        "docs/crowd.md",
        "docs/crowd-growth.md",
        "results/README.md",
    )
)
_MARK = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# whose records another table lists
_LISTED_ELSEWHERE = (
    "crowd_mechanisms", "crowd_scheduling", "crowd_targets", "headline", "residency_targets", "served_plans",
    "served_targets", "shared_pictures", "shared_targets", "targets", "whole_bound", "whole_targets",
    "whole_starts",
)  # fmt: skip
Named = tuple[str, Any]  # a record and the name of its file


def write_record(
    output: Path, kind: str, module: str, words: Sequence[str], rows: Sequence[Any], *, schema_version: int = 1
) -> None:
    """Write the record of a command `python -m module words`, without the path it is written to; a row is a line."""
    kept, outputs = [], iter(words)
    for word in outputs:
        if word in ("-o", "--output"):
            next(outputs, None)
        elif not word.startswith(("--output=", "-o")):
            kept.append(word)
    made_by = provenance(["python", "-m", module, *kept])
    head = json.dumps({"kind": kind, "schema_version": schema_version, "provenance": made_by}, indent=1)
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_text(output, f'{head[:-2]},\n "rows": [\n{lines}\n]}}\n', "the record")


def read_records(folder: Path) -> dict[str, list[Named]]:
    """Return the records in a folder by kind, each with its file name, in order of the names.

    Raises:
        UsageError: If a file there is no record; the message names it.
    """
    records: dict[str, list[Named]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            kind = data["kind"]
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"'{path}' is damaged, or no record: {type(error).__name__}: {error}") from error
        records.setdefault(kind, []).append((path.name, data))
    return records


def cuts_table(records: Iterable[Named]) -> str:
    """Return what the check of every cut point found."""
    rows = [
        (
            row["model"],
            row["graph"],
            str(row["num_cuts"]),
            str(row["num_partitions"]),
            str(len(row["different"])),
            f"{row['original_error']:.1e}",
        )
        for _, record in records
        for row in record["rows"]
    ]
    return _table(("model", "graph", "cuts", "partitions", "differ from unsplit", "error against original"), rows)


def calibration_table(records: Iterable[Named]) -> str:
    """Return what was fitted to the published table, and what each fit leaves of every figure in it."""
    fits = [row for _, record in records for row in record["rows"]]
    fitted = [
        (
            row["fit"],
            ", ".join(f"`{key}` = {row['parameters'][key]:.3g}" for key in row["free"]),
            f"{row['rms_residual'] * 100:.1f}",
        )
        for row in fits
    ]
    observed = [
        (
            model["model"].removeprefix("zoo:"),
            f"{model['weights_bytes'] / 1e6:.1f}",
            str(model["num_nodes"]),
            column,
            f"{seconds * 1e3:.0f}",
            f"{model['simulated_s'][column] * 1e3:.0f}",
            *(f"{fit['models'][number]['residual'][column] * 100:+.1f}" for fit in fits),
        )
        for number, model in enumerate(fits[0]["models"])
        for column, seconds in model["observed_s"].items()
    ]
    names = [f"{row['fit']}, residual %" for row in fits]
    head = ("model", "weights MB", "nodes", "load", "published ms", "simulated ms", *names)
    return _table(("fit of", "parameters", "residual, root mean square, %"), fitted) + "\n" + _table(head, observed)


def steps_table(records: Iterable[Named]) -> str:
    """Return how many steps a second the environment makes, in thousands."""
    rows = [
        (
            row["through"],
            str(row["num_envs"]),
            row["objective"],
            row["play"],
            f"{figure['median'] / 1e3:.0f} ({figure['min'] / 1e3:.0f}–{figure['max'] / 1e3:.0f})",
            str(len(figure["samples"])),
        )
        for _, record in records
        for row in record["rows"]
        for figure in [row["steps_per_s"]]
    ]
    return _table(("through", "environments", "objective", "actions", "thousand steps/s", "n"), rows)


def torch_table(records: Iterable[Named]) -> str:
    """Return the time to first output of torch modules, and the time in which their bytes could be copied."""
    rows = [
        (
            row["gpu"] or row["device"],
            f"{row['model_bytes'] / 1e6:.0f} MB, {row['dtype']}",
            row["page_cache"],
            row["arm"] if row["num_stages"] is None else f"{row['arm']}, k = {row['num_stages']}",
            bench_tables.spread(row["ttfo_s"]),
            *(f"{row[key]['median'] * 1e3:.0f}" for key in ("load_s", "steady_inference_s", "limit_s")),
            f"{row['ttfo_s']['median'] / max(row['limit_s']['median'], row['steady_inference_s']['median']):.2f}",
            str(len(row["ttfo_s"]["samples"])),
        )
        for _, record in records
        for row in record["rows"]
    ]
    head = ("device", "module", "page cache", "arm", "TTFO ms", "load call ms", "steady ms", "copy ms")
    return _table((*head, "TTFO ÷ longer of the two", "n"), rows)


def _warm(record: Mapping[str, Any]) -> bool:
    return bool(record["page_cache"] == "warm")


def _every(record: Mapping[str, Any]) -> bool:
    return True


def _has(kind: str) -> Callable[[Mapping[str, Any]], bool]:
    """Return whether a record of `matrix` has rows of a kind."""
    return lambda record: any(row["of"] == kind for row in record["rows"])


def gradients_table(records: Iterable[Named]) -> str:
    """Return by how much gradients of training steps differ from autograd's, the worst of all weights."""
    rows = [
        (
            row["model"].removeprefix("zoo:"),
            f"`{row['trainable']}`",
            row["loss"],
            str(len(row["difference"]["float32"])),
            *(f"{max(row['difference'][kind].values()):.1e}" for kind in ("float32", "float64")),
            ", ".join(row["operators"]),
        )
        for _, record in records
        for row in record["rows"]
    ]
    head = ("model", "trained", "loss", "weights", "on a device (float32)", "in float64", "operators")
    return _table(head, rows)


# By the word in a document: the kind of its records, which of them it takes, and how the table is made.
_TABLES: dict[str, tuple[str, Callable[[Mapping[str, Any]], bool], Callable[[Iterable[Named]], str]]] = {
    "bench": ("bench", _warm, lambda found: _table(*bench_tables.bench(found))),
    "ttfo": ("bench", _warm, lambda found: _table(*bench_tables.ttfo(found))),
    "headline": ("whole", _every, lambda found: _table(*whole_tables.headline(found))),
    "timeline": ("timeline", _every, lambda found: _table(*bench_tables.timeline(found))),
    "targets": ("bench", _warm, lambda found: _table(*bench_tables.targets(found))),
    "cold": ("bench", lambda record: not _warm(record), lambda found: _table(*bench_tables.cold(found))),
    "search": ("search", _every, lambda found: _table(*plan_tables.search(found))),
    "as_trained": ("as_trained", _every, lambda found: _table(*plan_tables.as_trained(found))),
    "ablation": ("ablation", _every, lambda found: _table(*plan_tables.ablation(found))),
    "cuts": ("cuts", _every, cuts_table),
    "calibration": ("calibration", _every, calibration_table),
    "predictions": ("predictions", _every, lambda found: _table(*plan_tables.predictions(found))),
    "rivals": ("rivals", _every, lambda found: _table(*plan_tables.rivals(found))),
    "budget": ("budget", _every, lambda found: _table(*plan_tables.budget(found))),
    "steps": ("steps", _every, steps_table),
    "memory": ("memory", _every, lambda found: _table(*memory_table.memory(found))),
    "sizes": ("sizes", _every, lambda found: _table(*size_tables.sizes(found))),
    "builds": ("builds", _every, lambda found: _table(*build_tables.builds(found))),
    "starts": ("starts", _every, lambda found: _table(*build_tables.starts(found))),
    "portable": ("portable", _every, lambda found: _table(*build_tables.portable(found))),
    "whole": ("whole", _every, lambda found: _table(*whole_tables.whole(found))),
    "whole_targets": ("whole", _every, lambda found: _table(*whole_tables.targets(found))),
    "whole_bound": ("whole", _every, lambda found: _table(*whole_tables.bound(found))),
    "whole_starts": ("whole", _every, lambda found: _table(*whole_tables.starts(found))),
    "gradients": ("gradients", _every, gradients_table),
    "torch_load": ("torch_load", _every, torch_table),
    "personalization": ("personalization", _every, lambda found: _table(*personal_tables.personalization(found))),
    "architectures": ("architectures", _every, lambda found: _table(*architecture_tables.architectures(found))),
    "matrix": ("matrix", _has("pair"), lambda found: _table(*matrix_tables.pairs(found))),
    "next_version": ("matrix", _has("ttfo"), lambda found: _table(*matrix_tables.first_outputs(found))),
    "digits": ("digits", _every, lambda found: _table(*personal_tables.digits(found))),
    "residency": ("residency", _every, lambda found: _table(*residency_tables.residency(found))),
    "residency_targets": ("residency", _every, lambda found: _table(*residency_tables.targets(found))),
    "served": ("served", _every, lambda found: _table(*served_tables.pairs(found))),
    "served_targets": ("served", _every, lambda found: _table(*served_tables.targets(found))),
    "served_plans": ("served", _every, lambda found: _table(*served_tables.plans(found))),
    "clients": ("clients", _every, lambda found: _table(*client_tables.clients(found))),
    "crowd": ("crowd", _every, lambda found: _table(*emulated_tables.batches(found))),
    "crowd_targets": ("crowd", _every, lambda found: _table(*emulated_tables.targets(found))),
    "crowd_mechanisms": ("crowd", _has("ablation"), lambda found: _table(*emulated_tables.ablation(found))),
    "crowd_growth": ("crowd_growth", _every, lambda found: _table(*crowd_tables.growth(found))),
    "crowd_scheduling": ("crowd_growth", _every, lambda found: _table(*crowd_tables.scheduling(found))),
    "shared": ("shared", _every, lambda found: _table(*shared_tables.shared(found))),
    "shared_targets": ("shared", _every, lambda found: _table(*shared_tables.targets(found))),
    "shared_pictures": ("shared", _every, shared_tables.pictures),
    "shared_operators": ("shared_operators", _every, lambda found: _table(*shared_other_tables.operators(found))),
    "shared_published": ("shared_published", _every, lambda found: _table(*shared_other_tables.published(found))),
    "shared_equality": ("shared_equality", _every, lambda found: _table(*shared_other_tables.equality(found))),
    "shared_planning": ("shared_planning", _every, lambda found: _table(*shared_other_tables.planning(found))),
    "shared_trace": ("shared_trace", _every, lambda found: _table(*shared_other_tables.traces(found))),
    "shared_faults": ("shared_faults", _every, lambda found: _table(*shared_other_tables.kills(found))),
    "share_wire": ("share_wire", _every, lambda found: _table(*shared_other_tables.wire(found))),
    "served_faults": ("served_faults", _every, lambda found: _table(*fault_tables.faults(found))),
}


def fill(text: str, records: Mapping[str, Sequence[Named]]) -> str:
    """Return a document with the table between each `<!-- results:WORD -->` and `<!-- end -->` made anew."""

    def replace(match: re.Match[str]) -> str:
        kind, takes, make = _TABLES[match[2]]
        found = [named for named in records.get(kind, []) if takes(named[1])]
        listed = found if match[2] not in _LISTED_ELSEWHERE else []
        commands = "".join(f"- `{name}`: `{_today(data['provenance']['command'])}`\n" for name, data in listed)
        table = make(found) if found else "No record yet.\n"
        return "\n".join(part for part in (match[1], table, commands, match[3]) if part)

    return _MARK.sub(replace, text)


def main(words: Sequence[str] | None = None) -> int:
    """Write the tables, or with `--check` return 1 if a document does not match the records."""
    parser = argparse.ArgumentParser(prog="python -m splitload.studies.records", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail where a table is out of date")
    options = parser.parse_args(words)
    records = read_records(ROOT / "results")
    stale = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        filled = fill(text, records)
        if filled != text:
            stale.append(path.name)
            if not options.check:
                path.write_text(filled, encoding="utf-8")
    return int(options.check and bool(stale))


def _today(command: str) -> str:
    """Return a recorded command as it is given now: older records were made when studies stood among the commands."""
    return command.replace("-m splitload.commands.", "-m splitload.studies.")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(word.replace("|", "\\|") for word in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
