"""Tables from the records in results/: `python -m splitload.studies.records` writes them, `--check` compares."""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from splitload.base.atomic import write_text
from splitload.measure.arm_names import ARM_NAMES
from splitload.measure.provenance import provenance
from splitload.studies import (
    architecture_tables,
    client_tables,
    matrix_tables,
    memory_table,
    personal_tables,
    plan_tables,
    size_tables,
)

ROOT = Path(__file__).resolve().parents[2]
_MARK = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MIB = 1 << 20
_LARGE_BYTES = 79_000_000
# the models that targets are set for; the specification's own one, lowlight, stands beside them
TARGETED = {
    f"zoo:{name}"
    for name in (
        "squeezenet1_1", "mobilenet_v1", "densenet201", "inception_v3", "convnext_tiny", "resnet152", "distilbert",
        "vgg19",
    )
}  # fmt: skip
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
    """Return the records in a folder by kind, each with its file name, in order of the names."""
    records: dict[str, list[Named]] = {}
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        records.setdefault(data["kind"], []).append((path.name, data))
    return records


def bench_table(records: Iterable[Named]) -> str:
    """Return medians of every model and arm, with the spread of the time to first output."""
    head = ("model", "arm", "TTFO ms", "÷ stock", "load ms", "first inference ms", "steady ms", "process ms")
    rows = [
        (
            _model(record),
            f"{arm}, k = {record['plan']['num_stages']}" if arm == "splitload" else arm,
            _spread(figures["ttfo_s"]),
            _ratio(record, arm, "stock", "ttfo_s"),
            *(_figure(figures, f"{key}_s", 1e3) for key in ("load", "first_inference", "steady_inference", "process")),
            _figure(figures, "peak_memory_bytes", 1 / _MIB),
            _figure(figures, "settled_memory_bytes", 1 / _MIB),
            str(record["runs"]),
        )
        for _, record in records
        for arm, figures in record["arms"].items()
    ]
    return _table((*head, "peak MiB", "settled MiB", "n"), rows)


def cold_table(records: Iterable[Named]) -> str:
    """Return what arms take where their files must be read from storage first."""
    rows = [
        (
            _model(record),
            "as it is" if record["storage_bytes_per_s"] is None else f"{record['storage_bytes_per_s'] / 1e6:.0f}",
            arm,
            _spread(figures["ttfo_s"]),
            _figure(figures, "limit_s", 1e3),
            _over_limit(figures),
            _figure(figures, "touched_bytes", 1e-6),
            _figure(figures, "process_s", 1e3),
            str(record["runs"]),
        )
        for _, record in records
        for arm, figures in record["arms"].items()
    ]
    return _table(
        ("model", "storage MB/s", "arm", "TTFO ms", "limit ms", "TTFO ÷ limit", "in cache MB", "process ms", "n"), rows
    )


def ttfo_table(records: Iterable[Named]) -> str:
    """Return the time to first output, one row a model and one column an arm."""
    found = [record for _, record in records]
    present = [arm for arm in ARM_NAMES if any(arm in record["arms"] for record in found)]
    rows = [
        (
            _model(record),
            *(_spread(record["arms"][arm]["ttfo_s"]) if arm in record["arms"] else "–" for arm in present),
            str(record["plan"]["num_stages"]) if record["plan"] else "–",
            str(record["runs"]),
        )
        for record in found
    ]
    return _table(("model", *present, "k", "n"), rows)


def targets_table(records: Iterable[Named]) -> str:
    """Return what targets are set for, over the models that they are set for: geometric mean, and the worst."""
    found = [record for _, record in records if record["model"] in TARGETED]
    large = [record for record in found if record["model_bytes"] >= _LARGE_BYTES]
    rows = []
    for title, arm, of, key, models, worst in (
        ("TTFO, stock ÷ splitload", "stock", "splitload", "ttfo_s", found, min),
        ("TTFO, tuned ÷ splitload", "tuned", "splitload", "ttfo_s", found, min),
        ("TTFO, openvino ÷ splitload", "openvino", "splitload", "ttfo_s", found, min),
        ("whole process, torch ÷ splitload", "torch", "splitload", "process_s", found, min),
        ("TTFO ÷ steady inference of splitload, 79 MB and more", "splitload", "splitload", "ttfo_s", large, max),
        ("steady inference, splitload ÷ stock", "splitload", "stock", "steady_inference_s", found, max),
        ("settled memory, splitload ÷ stock", "splitload", "stock", "settled_memory_bytes", found, max),
    ):
        over = "steady_inference_s" if arm == of else key
        pairs = [(_median(each, arm, key), _median(each, of, over), _model(each)) for each in models]
        ratios = [(above / below, model) for above, below, model in pairs if above is not None and below]
        if ratios:
            mean = statistics.geometric_mean(ratio for ratio, _ in ratios)
            ratio, model = worst(ratios)
            rows.append((title, f"{mean:.2f}", f"{ratio:.2f}", model, str(len(ratios))))
    sizes = [
        (each["files_bytes"]["splitload"] / each["model_bytes"], _model(each))
        for each in found
        if "files_bytes" in each
    ]
    imports = [(ms * 1e3, _model(each)) for each in found if (ms := _median(each, "splitload", "import_s")) is not None]
    for title, values in (
        ("bundle ÷ model, bytes", sizes),
        ("`import splitload` beyond numpy and onnxruntime, ms", imports),
    ):
        if values:
            mean = statistics.geometric_mean(value for value, _ in values)
            rows.append((title, f"{mean:.2f}", f"{max(values)[0]:.2f}", max(values)[1], str(len(values))))
    return _table(("of medians", "geometric mean", "worst", "model", "models"), rows)


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
            _spread(row["ttfo_s"]),
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
    "bench": ("bench", _warm, bench_table),
    "ttfo": ("bench", _warm, ttfo_table),
    "targets": ("bench", _warm, targets_table),
    "cold": ("bench", lambda record: not _warm(record), cold_table),
    "search": ("search", _every, lambda found: _table(*plan_tables.search(found))),
    "ablation": ("ablation", _every, lambda found: _table(*plan_tables.ablation(found))),
    "cuts": ("cuts", _every, cuts_table),
    "calibration": ("calibration", _every, calibration_table),
    "predictions": ("predictions", _every, lambda found: _table(*plan_tables.predictions(found))),
    "rivals": ("rivals", _every, lambda found: _table(*plan_tables.rivals(found))),
    "budget": ("budget", _every, lambda found: _table(*plan_tables.budget(found))),
    "steps": ("steps", _every, steps_table),
    "memory": ("memory", _every, lambda found: _table(*memory_table.memory(found))),
    "sizes": ("sizes", _every, lambda found: _table(*size_tables.sizes(found))),
    "gradients": ("gradients", _every, gradients_table),
    "torch_load": ("torch_load", _every, torch_table),
    "personalization": ("personalization", _every, lambda found: _table(*personal_tables.personalization(found))),
    "architectures": ("architectures", _every, lambda found: _table(*architecture_tables.architectures(found))),
    "matrix": ("matrix", _has("pair"), lambda found: _table(*matrix_tables.pairs(found))),
    "next_version": ("matrix", _has("ttfo"), lambda found: _table(*matrix_tables.first_outputs(found))),
    "digits": ("digits", _every, lambda found: _table(*personal_tables.digits(found))),
    "clients": ("clients", _every, lambda found: _table(*client_tables.clients(found))),
}


def fill(text: str, records: Mapping[str, Sequence[Named]]) -> str:
    """Return a document with the table between each `<!-- results:WORD -->` and `<!-- end -->` made anew."""

    def replace(match: re.Match[str]) -> str:
        kind, takes, make = _TABLES[match[2]]
        found = [named for named in records.get(kind, []) if takes(named[1])]
        listed = found if make is not targets_table else []  # the other tables list them
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
    for path in (ROOT / "README.md", ROOT / "results" / "README.md"):
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


def _model(record: Mapping[str, Any]) -> str:
    return f"{record['model'].removeprefix('zoo:')} ({record['model_bytes'] / 1e6:.0f} MB)"


def _median(record: Mapping[str, Any], arm: str, key: str) -> float | None:
    """Return a median, or None where the record lacks the arm or the figure."""
    figure = record["arms"].get(arm, {}).get(key)
    return None if figure is None else float(figure["median"])


def _ratio(record: Mapping[str, Any], arm: str, of: str, key: str) -> str:
    above, below = _median(record, arm, key), _median(record, of, key)
    return "–" if above is None or not below else f"{above / below:.2f}"


def _figure(figures: Mapping[str, Any], key: str, scale: float) -> str:
    """Return a median; older records lack some figures, and some systems do not tell all."""
    return "–" if (figure := figures.get(key)) is None else f"{figure['median'] * scale:.0f}"


def _over_limit(figures: Mapping[str, Any]) -> str:
    return "–" if "limit_s" not in figures else f"{figures['ttfo_s']['median'] / figures['limit_s']['median']:.2f}"


def _spread(figure: Mapping[str, float]) -> str:
    return f"{figure['median'] * 1e3:.0f} ({figure['min'] * 1e3:.0f}–{figure['max'] * 1e3:.0f})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(word.replace("|", "\\|") for word in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
