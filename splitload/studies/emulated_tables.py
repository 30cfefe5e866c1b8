"""The tables of crowds of emulated devices: batches, what each mechanism is worth, and what is aimed at."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from splitload.studies.size_tables import Table, median_with_range

_MIB = 1 << 20
_BAD = ("lost", "doubled", "failed", "wrong")
_ORDINARY = ("batch", "memory", "throughput", "kills", "storm")  # parts whose samples one table shows
Named = Iterable[tuple[str, Any]]


def batches(records: Named) -> Table:
    """Return what batches took, and what came back."""
    head = (
        "part", "model, stages", "devices", "arm", "n", "inputs", "batch s", "lost, doubled, failed, wrong",
        "largest error", "between stages MB", "stages sent MB", "processor s", "peak above idle MiB", "whole MiB",
    )  # fmt: skip
    body = []
    for row in _rows(records, *_ORDINARY):
        limits = row["limits"]
        devices = "no limits" if limits is None else f"{limits['processors']:g} of a processor"
        for arm, samples in row["samples"].items():
            done = [each for each in samples if each is not None]
            body.append(
                (
                    row["of"],
                    f"{row['model']}, {len(row['stage_bytes'])}",
                    f"{row['num_devices']}, {devices}",
                    arm,
                    f"{len(done)} of {len(samples)}",
                    _one_of(each["num_inputs"] for each in done),
                    median_with_range([each["batch_s"] for each in done]),
                    ", ".join(str(sum(each[key] for each in done)) for key in _BAD),
                    _error(done),
                    *_cost(done),
                )
            )
    return head, body


def ablation(records: Named) -> Table:
    """Return what batches take without each mechanism, over what they take with all."""
    head = (
        "without", "n", "batch s", "÷ with all", "failed inputs", "between stages MB", "stages sent MB", "processor s",
        "peak above idle MiB", "whole MiB",
    )  # fmt: skip
    body = []
    for row in _rows(records, "ablation"):
        for arm, samples in row["samples"].items():
            done = [each for each in samples if each is not None]
            with_all = [each for each in row["samples"][_beside(arm, row["samples"])] if each is not None]
            body.append(
                (
                    arm,
                    f"{len(done)} of {len(samples)}",
                    median_with_range([each["batch_s"] for each in done]),
                    _ratio(done, with_all),
                    f"{sum(each['failed'] for each in done)} of {sum(each['num_inputs'] for each in done)}",
                    *_cost(done),
                )
            )
    return head, body


def targets(records: Named) -> Table:
    """Return what is aimed at, and what was measured."""
    body: list[tuple[str, ...]] = []
    for row in _rows(records, *_AIMS):
        body += _AIMS[row["of"]](row)
    return ("target", "aim", "measured"), body


def _batch_aims(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    model = f"{row['model']} in {len(row['stage_bytes'])} stages"
    found = []
    for rule, said in ((", tiers", "placed by the paper's tiers"), ("", "placed by expected finish")):
        for state in ("", ", cold"):
            streaming, barrier = (_done(row, f"{name}{rule}{state}") for name in ("streaming", "barrier"))
            if streaming and barrier:
                medians = f"{_median_s(streaming):.2f} s ÷ {_median_s(barrier):.2f} s, medians of {len(streaming)}"
                ratio = _ratio(streaming, barrier)
                found.append((f"{model}{state}, {said}: streaming ÷ barrier, {medians}", "≤ 0.66", ratio))
    return found + _error_aims(row, model, f", which without optimising is off by {row['rounding']:.1e} itself")


def _error_aims(row: Mapping[str, Any], model: str, more: str = "") -> list[tuple[str, str, str]]:
    every = [each for samples in row["samples"].values() for each in samples if each is not None]
    if not every:
        return []
    of_all = f"{model}: largest error of all inputs ({_one_of(each['num_inputs'] for each in every)} each time)"
    return [
        (f"{of_all}, relative to the unsplit model in a session as the stages'", "≤ 1e-5", _error(every, "unsplit_")),
        (f"{of_all}, relative to stock{more}", "≤ 1e-5", _error(every)),
    ]


def _memory_aims(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    done = _done(row, "streaming")
    model = f"{row['model']} in {len(row['stage_bytes'])} stages, planned for {row['planned_for']} a worker"
    if not done:
        return []
    peak = (
        f"{model}: largest peak of a worker above idle, MiB",
        "≤ 43",
        median_with_range([_peak_mib(each) for each in done]),
    )
    return [peak, *_error_aims(row, model)]


def _throughput_aims(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rates = [each for each in row["rates"] if each is not None]
    found = []
    for key, text, aim in (
        ("slowest_stage_per_s", "the slowest stage's rate, each worker at one stage", "≥ 0.85"),
        ("shared_per_s", "the rate of workers that all run all stages", "–"),
    ):
        shares = [each["inputs_per_s"] / each[key] for each in rates if each[key] is not None]
        if shares:
            inputs = _one_of(each["num_inputs"] for each in _done(row, "streaming"))
            found.append((f"{row['model']}: throughput at {inputs} inputs ÷ {text}", aim, median_with_range(shares, 2)))
    return found + _error_aims(row, f"{row['model']} in {len(row['stage_bytes'])} stages")


def _kill_aims(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    samples = row["samples"]["a worker killed"]
    done = [each for each in samples if each is not None]
    if not samples:
        return []
    bad = sum(each[key] for each in done for key in _BAD)
    ended = f", and {len(samples) - len(done)} batches failed" if len(done) < len(samples) else ""
    during = sum(each["held"] is not None for each in done)
    placed = [each["placed_s"] for each in done if each["placed_s"] is not None]
    return [
        (f"a worker killed, {len(samples)} times: results lost, doubled, failed or wrong", "0", f"{bad}{ended}"),
        (
            f"… to the first task placed anew, s ({len(placed)} of the {during} kills amid a batch cost a task)",
            "≤ 2",
            f"{median_with_range(placed, 2)}" if placed else "–",
        ),
    ]


def _storm_aims(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    (sample,) = row["samples"]["storm"]
    kinds = [each["fault"] for each in row["faults"]]
    text = f"{row['num_devices']} workers, {kinds.count('kill')} kills, {kinds.count('cut')} links cut for 3 s: right"
    if sample is None:
        return [(text, "all", "the batch failed")]
    right = sample["num_inputs"] - sum(sample[key] for key in _BAD)
    return [(text, f"all {sample['num_inputs']:,}", f"{right:,}")]


_AIMS: dict[str, Callable[[Mapping[str, Any]], list[tuple[str, str, str]]]] = {
    "batch": _batch_aims,
    "memory": _memory_aims,
    "throughput": _throughput_aims,
    "kills": _kill_aims,
    "storm": _storm_aims,
}


def _rows(records: Named, *parts: str) -> Iterator[Any]:
    return (row for _, record in records for row in record["rows"] if row["of"] in parts)


def _done(row: Mapping[str, Any], arm: str) -> list[Any]:
    return [each for each in row["samples"].get(arm, []) if each is not None]


def _beside(arm: str, arms: Iterable[str]) -> str:
    """Return the arm with all mechanisms that one is compared with."""
    state = arm.partition(", ")[2]
    name = f"none, {state}" if state else "none"
    return name if name in arms else "none"


def _cost(done: Sequence[Any]) -> tuple[str, ...]:
    stages = [each["stages_from_client_bytes"] + each["stages_between_bytes"] for each in done]
    return (
        median_with_range([each["between_bytes"] / 1e6 for each in done]),
        median_with_range([size / 1e6 for size in stages]),
        median_with_range([each["cpu_s"] for each in done]),
        median_with_range([_peak_mib(each) for each in done]),
        median_with_range(
            [max(size for size in each["peak_bytes"].values() if size is not None) / _MIB for each in done]
        ),
    )


def _peak_mib(sample: Mapping[str, Any]) -> float:
    """Return the most that a worker took above what it had before the batch."""
    idle = sample["idle_bytes"]
    above = [
        (size - idle[name]) / _MIB
        for name, size in sample["peak_bytes"].items()
        if size is not None and idle.get(name) is not None
    ]
    return float(max(above))


def _ratio(done: Sequence[Any], others: Sequence[Any]) -> str:
    if not (done and others):
        return "–"
    return f"{_median_s(done) / _median_s(others):.2f}"


def _median_s(done: Sequence[Any]) -> float:
    return float(statistics.median(each["batch_s"] for each in done))


def _error(done: Sequence[Any], beside: str = "") -> str:
    errors = [error for each in done if (error := each[f"largest_{beside}error"]) is not None]
    return f"{max(errors):.1e}" if errors else "–"


def _one_of(values: Iterable[int]) -> str:
    return " or ".join(f"{value:,}" for value in sorted(set(values))) or "–"
