"""The tables of whole processes and of what is aimed at for them, which `splitload.studies.records` sets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from splitload.studies.size_tables import Table

_MIB = 1 << 20
_MS = ("process_s", "exit_s", "ttfo_s", "settled_ttfo_s", "steady_inference_s")


def headline(records: Iterable[tuple[str, Any]]) -> Table:
    """Return what a newcomer asks first: the whole process, and the time to first output in it, imports done."""
    body = []
    for row in (row for _, record in records for row in record["rows"] if row["of"] == "model"):
        arms = row["arms"]
        ratio = arms["stock"]["process_s"]["median"] / arms["splitload-buffers"]["process_s"]["median"]
        first = (("stock", "ttfo_s"), ("tuned", "ttfo_s"), ("splitload", "settled_ttfo_s"))
        body.append(
            (
                f"{row['model']} ({row['model_bytes'] / 1e6:.0f} MB)",
                *(_figure(arms[arm], "process_s", 1e3) for arm in ("stock", "tuned", "splitload", "splitload-buffers")),
                f"{ratio:.2f}",
                *(f"{arms[arm][key]['median'] * 1e3:.0f}" for arm, key in first),
                str(row["num_stages"]),
                str(row["runs"]),
            )
        )
    whole = ("process: stock", "tuned", "splitload", "with buffers", "stock ÷ buffers")
    return ("model", *whole, "TTFO: stock", "tuned", "splitload", "k", "n"), body


def whole(records: Iterable[tuple[str, Any]]) -> Table:
    """Return every figure of every model and arm: medians, with the quartiles of the whole process and of the TTFO."""
    body = [
        (
            f"{row['model']} ({row['model_bytes'] / 1e6:.0f} MB)",
            f"{arm}, k = {row['num_stages']}" if arm.startswith("splitload") else arm,
            *(_figure(figures, key, 1e3) for key in _MS),
            _figure(figures, "peak_memory_bytes", 1 / _MIB),
            str(row["runs"]),
        )
        for _, record in records
        for row in record["rows"]
        if row["of"] == "model"
        for arm, figures in row["arms"].items()
    ]
    head = ("model", "arm", "whole process ms", "to its end ms", "TTFO ms", "settled TTFO ms", "steady ms")
    return (*head, "peak MiB", "n"), body


def starts(records: Iterable[tuple[str, Any]]) -> Table:
    """Return what starts without a model, in milliseconds."""
    keys = ("import_s", "loader_import_s", "version_s", "pass_s")
    body = [
        (
            "this" if row["build"] == "after" else row["build"],
            *(_figure(row["figures"], key, 1e3, digits=1) for key in keys),
            ", ".join(row["imported"]) or "neither",
            str(row["runs"]),
        )
        for _, record in records
        for row in record["rows"]
        if row["of"] == "start"
    ]
    head = ("build", "`import splitload`", "then `ParallelLoader`", "`splitload --version`", "`python -c pass`")
    return (*head, "imports numpy, onnxruntime", "n"), body


def bound(records: Iterable[tuple[str, Any]]) -> Table:
    """Return how near the process with buffers comes to what a program with Python in it cannot do without.

    That is the whole process of the program in C, and Python's own start before it; medians of one record.
    """
    body: list[tuple[str, ...]] = []
    for _, record in records:
        start_s = next(
            row["figures"]["pass_s"]["median"]
            for row in record["rows"]
            if row["of"] == "start" and row["build"] == "after"
        )
        ratios: list[tuple[float, float, float]] = []
        for row in record["rows"]:
            if row["of"] != "model" or "c" not in row["arms"]:
                continue
            c, stock, tuned, buffers = (
                row["arms"][arm]["process_s"]["median"] for arm in ("c", "stock", "tuned", "splitload-buffers")
            )
            least = c + start_s
            ratios.append((buffers / least, stock / least, tuned / least))
            body.append(
                (
                    row["model"],
                    f"{c * 1e3:.0f}",
                    f"{least * 1e3:.0f}",
                    f"{buffers * 1e3:.0f}",
                    *map(_number, ratios[-1]),
                )
            )
        if ratios:
            means = (_number(statistics.geometric_mean(each)) for each in zip(*ratios, strict=True))
            body.append(("geometric mean", "", "", "", *means))
    head = ("model", "in C", "Python's start and that", "buffers", "buffers ÷ that", "stock ÷ that", "tuned ÷ that")
    return head, body


def targets(records: Iterable[tuple[str, Any]]) -> Table:
    """Return what is aimed at, and what was measured."""
    body: list[tuple[str, ...]] = [
        (
            str(target["what"]),
            str(target["figure"]),
            f"{'≥' if target['at_least'] else '≤'} {target['target']:g}",
            _number(target["value"]),
            _number(target.get("in_c")),  # which earlier records lack
            {True: "yes", False: "no", None: "–"}[target["met"]],
            str(target["model"] or "–"),
            str(target["models"]),
        )
        for _, record in records
        for row in record["rows"]
        if row["of"] == "targets"
        for target in row["targets"]
    ]
    return ("of medians", "figure", "target", "measured", "the same with C", "met", "worst model", "models"), body


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _figure(figures: Mapping[str, Any], key: str, scale: float, *, digits: int = 0) -> str:
    """Return a median with its quartiles; a dash where the arm has no such figure."""
    if key not in figures:
        return "–"
    median, low, high = (f"{figures[key][name] * scale:.{digits}f}" for name in ("median", "q1", "q3"))
    return f"{median} ({low}–{high})"
