"""Tables from the records in results/: `python -m splitload.commands.records` writes them, `--check` compares."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from splitload.provenance import provenance

ROOT = Path(__file__).resolve().parents[2]
_MARK = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MIB = 1 << 20


def write_record(output: Path, kind: str, module: str, words: Sequence[str], rows: Sequence[Any]) -> None:
    """Write the record of a command `python -m module words`, without the path it is written to."""
    kept = [word for word in words if word not in ("-o", "--output", str(output))]
    made_by = provenance(["python", "-m", module, *kept])
    record = {"kind": kind, "schema_version": 1, "provenance": made_by, "rows": rows}
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_records(folder: Path) -> dict[str, list[tuple[str, Any]]]:
    """Return the records in a folder by kind, each with its file name, in order of the names."""
    records: dict[str, list[tuple[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        records.setdefault(data["kind"], []).append((path.name, data))
    return records


def bench_table(records: Iterable[tuple[str, Any]]) -> str:
    """Return medians of every model and arm, with the spread of the time to first output."""
    rows = []
    for _, record in records:
        stock_s = record["arms"]["stock"]["ttfo_s"]["median"]
        for arm, figures in record["arms"].items():
            ttfo = figures["ttfo_s"]
            rows.append(
                (
                    f"{record['model'].removeprefix('zoo:')} ({record['model_bytes'] / 1e6:.0f} MB)",
                    f"{arm}, k = {record['plan']['num_stages']}" if arm == "splitload" else arm,
                    f"{ttfo['median'] * 1e3:.0f} ({ttfo['min'] * 1e3:.0f}–{ttfo['max'] * 1e3:.0f})",
                    f"{ttfo['median'] / stock_s:.2f}",
                    f"{figures['load_s']['median'] * 1e3:.0f}",
                    f"{figures['first_inference_s']['median'] * 1e3:.0f}",
                    f"{figures['steady_inference_s']['median'] * 1e3:.0f}",
                    f"{figures['peak_memory_bytes']['median'] / _MIB:.0f}",
                    str(record["runs"]),
                )
            )
    head = ("model", "arm", "TTFO ms", "÷ stock", "load ms", "first inference ms", "steady ms", "peak MiB", "n")
    return _table(head, rows)


def search_table(records: Iterable[tuple[str, Any]]) -> str:
    """Return how near learned plans came to the exact optimum."""
    rows = [
        (
            row["model"],
            f"{row['device']} ({row['source']})",
            str(row["num_blocks"]),
            str(len(row["plans"])),
            f"{row['worst_ratio']:.4f}",
            f"{row['slowest_search_s']:.1f}",
        )
        for _, record in records
        for row in record["rows"]
    ]
    return _table(("model", "device", "blocks", "plans", "worst learned ÷ exact", "slowest search s"), rows)


def cuts_table(records: Iterable[tuple[str, Any]]) -> str:
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


_TABLES = {"bench": bench_table, "search": search_table, "cuts": cuts_table}


def fill(text: str, records: dict[str, list[tuple[str, Any]]]) -> str:
    """Return a document with the table between each `<!-- results:KIND -->` and `<!-- end -->` made anew."""

    def replace(match: re.Match[str]) -> str:
        found = records.get(match[2], [])
        commands = "".join(f"- `{name}`: `{data['provenance']['command']}`\n" for name, data in found)
        table = _TABLES[match[2]](found)
        return f"{match[1]}\n{table}\n{commands}\n{match[3]}"

    return _MARK.sub(replace, text)


def main(words: Sequence[str] | None = None) -> int:
    """Write the tables, or with `--check` return 1 if a document does not match the records."""
    parser = argparse.ArgumentParser(prog="python -m splitload.commands.records", description=__doc__)
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


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
