"""The tables of `splitload bench`: every arm, cold files, and what targets are set for."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from splitload.measure.arm_names import ARM_NAMES

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
Table = tuple[tuple[str, ...], Sequence[tuple[str, ...]]]  # the head, and the rows


def bench(records: Iterable[Named]) -> Table:
    """Return medians of every model and arm, with the spread of the time to first output."""
    head = ("model", "arm", "TTFO ms", "÷ stock", "load ms", "first inference ms", "steady ms", "process ms")
    rows = [
        (
            _model(record),
            f"{arm}, k = {record['plan']['num_stages']}" if arm == "splitload" else arm,
            spread(figures["ttfo_s"]),
            _ratio(record, arm, "stock", "ttfo_s"),
            *(_figure(figures, f"{key}_s", 1e3) for key in ("load", "first_inference", "steady_inference", "process")),
            _figure(figures, "peak_memory_bytes", 1 / _MIB),
            _figure(figures, "settled_memory_bytes", 1 / _MIB),
            str(record["runs"]),
        )
        for _, record in records
        for arm, figures in record["arms"].items()
    ]
    return (*head, "peak MiB", "settled MiB", "n"), rows


def cold(records: Iterable[Named]) -> Table:
    """Return what arms take where their files must be read from storage first."""
    rows = [
        (
            _model(record),
            "as it is" if record["storage_bytes_per_s"] is None else f"{record['storage_bytes_per_s'] / 1e6:.0f}",
            arm,
            spread(figures["ttfo_s"]),
            _figure(figures, "limit_s", 1e3),
            _over_limit(figures),
            _figure(figures, "touched_bytes", 1e-6),
            _figure(figures, "process_s", 1e3),
            str(record["runs"]),
        )
        for _, record in records
        for arm, figures in record["arms"].items()
    ]
    head = ("model", "storage MB/s", "arm", "TTFO ms", "limit ms", "TTFO ÷ limit", "in cache MB", "process ms", "n")
    return head, rows


def ttfo(records: Iterable[Named]) -> Table:
    """Return the time to first output, one row a model and one column an arm."""
    found = [record for _, record in records]
    present = [arm for arm in ARM_NAMES if any(arm in record["arms"] for record in found)]
    rows = [
        (
            _model(record),
            *(spread(record["arms"][arm]["ttfo_s"]) if arm in record["arms"] else "–" for arm in present),
            str(record["plan"]["num_stages"]) if record["plan"] else "–",
            str(record["runs"]),
        )
        for record in found
    ]
    return ("model", *present, "k", "n"), rows


def timeline(records: Iterable[Named]) -> Table:
    """Return the arms of the picture of a load."""
    rows = [
        (_model(row), row["arm"], str(row["num_stages"]), spread(row["ttfo_s"]), str(len(row["schedules"])))
        for _, record in records
        for row in record["rows"]
    ]
    return ("model", "arm", "stages", "TTFO ms", "n"), rows


def targets(records: Iterable[Named]) -> Table:
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
    return ("of medians", "geometric mean", "worst", "model", "models"), rows


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


def spread(figure: Mapping[str, float]) -> str:
    """Return a time in milliseconds: the median, and what lies around it."""
    return f"{figure['median'] * 1e3:.0f} ({figure['min'] * 1e3:.0f}–{figure['max'] * 1e3:.0f})"
