"""The table of faults of served devices: how often each happened, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]


def faults(records: Iterable[tuple[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return head and rows, one for each fault of each record."""
    rows = (row for _, record in records for row in record["rows"])
    return ("fault", "times", "what came of it"), [_PARTS[row["part"]](row) for row in rows]


def _requests(row: Row) -> tuple[str, ...]:
    return (
        "requests by the description, right and wrong ones",
        str(row["requests"]),
        f"{row['as_described']} answered as described",
    )


def _clients(row: Row) -> tuple[str, ...]:
    return "clients at once, each with a model of its own", str(row["clients"]), _outcomes(row)


def _links(row: Row) -> tuple[str, ...]:
    sent = f"{row['up_bytes'] / row['file_bytes']:.2f} bytes sent for each of a file"
    jobs = _outcomes({**row, "damaged_files": []})
    return (
        f"cuts of the link {_CUT_AT[row['cut_at']]}, during {row['jobs']} jobs",
        str(row["cuts"]),
        f"{jobs}; {sent}{_damaged(len(row['damaged_files']))}",
    )


def _kills(row: Row) -> tuple[str, ...]:
    good = sum(search["exit_code"] == 0 and search["valid_bundle"] for search in row["searches"])
    ends = f"{good} of {len(row['searches'])} searches end with a valid bundle"
    return "kills of the service during 'train --budget'", str(row["kills"]), ends + _damaged(row["damaged_files"])


_PARTS: Mapping[str, Callable[[Row], tuple[str, ...]]] = {
    "requests": _requests,
    "clients": _clients,
    "links": _links,
    "kills": _kills,
}


_CUT_AT = {"bytes": "after random numbers of bytes", "moments": "at random moments"}


def _outcomes(row: Row) -> str:
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(row["outcomes"].items()))
    return said + _damaged(len(row["damaged_files"]))


def _damaged(count: int) -> str:
    return f"; damaged files: {count}" if count else ""
