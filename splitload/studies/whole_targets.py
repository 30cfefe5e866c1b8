"""What is aimed at for whole processes, and whether a record reaches it: ratios of medians, over the models it has."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SMALLEST = "squeezenet1_1"  # the model whose process has a target beside the program in C
SMALL_BYTES = 100_000_000  # a model below it is small
LARGE_BYTES = 79_000_000  # of this size on, the time to first output is compared with what is possible
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that is aimed at.

    Attributes:
        what: What is measured.
        figure: "geometric mean" of the models, the "worst" of them, or "median" of one thing.
        at_least: Whether more is better.
        target: The figure that is aimed at.
        value: The figure that was measured; None where the record has no model for it.
        met: Whether that reaches it; None with no value.
        model: The worst model; None where there is but one thing.
        models: How many models there are.
        in_c: The figure that the program in C has in splitload's place; None where it has none.
    """

    what: str
    figure: str
    at_least: bool
    target: float
    value: float | None
    met: bool | None
    model: str | None
    models: int
    in_c: float | None = None

    @classmethod
    def of(
        cls,
        what: str,
        figure: str,
        at_least: bool,
        target: float,
        ratios: Mapping[str, float],
        *,
        also: bool = True,
        in_c: Mapping[str, float] | None = None,
    ) -> Target:
        """Return the target with what was measured.

        Args:
            what: What is measured.
            figure: See the class.
            at_least: Whether more is better.
            target: What is aimed at.
            ratios: The figure of each model.
            also: What has to hold besides.
            in_c: The figure of each model with the program in C in splitload's place.
        """
        if not ratios:
            return cls(what, figure, at_least, target, None, None, None, 0)
        worst = (min if at_least else max)(ratios, key=lambda model: ratios[model])
        value = _summed(figure, at_least, ratios)
        met = also and (value >= target if at_least else value <= target)
        named = None if figure == "median" else worst
        told_in_c = _summed(figure, at_least, in_c) if in_c else None
        return cls(what, figure, at_least, target, value, met, named, len(ratios), told_in_c)


def _summed(figure: str, at_least: bool, ratios: Mapping[str, float]) -> float:
    """Return one figure for all models, of which there is one at least."""
    if figure == "geometric mean":
        return statistics.geometric_mean(ratios.values())
    return (min if at_least else max)(ratios.values())


def targets(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return every target as plain values, from the rows of a record."""
    rows = list(rows)
    models = [row for row in rows if row["of"] == "model"]
    made = [*_of_processes(models), *_of_starts(rows), *_of_first_outputs(models)]
    return [asdict(target) for target in made]


def _of_processes(models: Sequence[Row]) -> list[Target]:
    """Return the targets of whole processes; what the program in C has there no program with Python in it can have."""
    mean, worst, buffers = "geometric mean", "worst", "splitload-buffers"
    tuned, tuned_in_c = (_ratios(models, "process_s", "tuned", arm) for arm in (buffers, "c"))
    memory, memory_in_c = (
        _ratios(models, "peak_memory_bytes", arm, "before", takes=lambda row: row["model_bytes"] < SMALL_BYTES)
        for arm in (buffers, "c")
    )
    whole = "whole process"
    earlier = "the build before"
    return [
        Target.of(
            f"{whole}, stock ÷ buffers", mean, True, 6.0, _ratios(models, "process_s", "stock", buffers),
            in_c=_ratios(models, "process_s", "stock", "c"),
        ),
        Target.of(f"{whole}, tuned ÷ buffers", mean, True, 2.3, tuned, in_c=tuned_in_c),
        Target.of(f"{whole}, tuned ÷ buffers", worst, True, 1.4, tuned, in_c=tuned_in_c),
        Target.of(
            f"{whole}, numpy arrays, this build ÷ {earlier}", mean, False, 0.80,
            _ratios(models, "process_s", "splitload", "before"),
        ),
        Target.of(
            f"{whole}, buffers ÷ the same in C, {SMALLEST}", worst, False, 1.6,
            _ratios(models, "process_s", buffers, "c", takes=lambda row: row["model"] == SMALLEST),
        ),
        Target.of(
            f"peak memory, buffers ÷ {earlier}, under 100 MB", worst, False, 0.65, memory, in_c=memory_in_c,
        ),
    ]  # fmt: skip


def _of_starts(rows: Sequence[Row]) -> list[Target]:
    """Return the targets of what starts without a model."""
    starts = [row for row in rows if row["of"] == "start" and row["build"] == "after"]
    light = not any(row["imported"] for row in starts)
    import_ms = {row["build"]: row["figures"]["import_s"]["median"] * 1e3 for row in starts}
    version = {
        row["build"]: row["figures"]["version_s"]["median"] / row["figures"]["pass_s"]["median"] for row in starts
    }
    return [
        Target.of(
            "`import splitload`, ms, with neither numpy nor onnxruntime", "median", False, 6.0, import_ms, also=light
        ),
        Target.of("`splitload --version` ÷ `python -c pass`", "median", False, 2.5, version),
    ]


def _of_first_outputs(models: Sequence[Row]) -> list[Target]:
    """Return the targets of the time to first output, imports done.

    Importing onnxruntime sets it up; importing the loader begins to. Beside the build before, both readings stand: as
    soon as the import has returned, and once what it began is done. Beside stock and tuned it is the latter.
    """
    tuned = _ratios(models, "ttfo_s", "tuned", "splitload", "settled_ttfo_s")
    before, settled = (_ratios(models, key, "splitload", "before") for key in ("ttfo_s", "settled_ttfo_s"))
    stock = _ratios(models, "ttfo_s", "stock", "splitload", "settled_ttfo_s")
    limit = {
        row["model"]: _median(row, "splitload", "settled_ttfo_s") / _median(row, "splitload", "steady_inference_s")
        for row in models
        if row["model_bytes"] >= LARGE_BYTES
    }
    return [
        Target.of(
            "TTFO as soon as the import has returned, this build ÷ the build before", "worst", False, 1.0, before
        ),
        Target.of("TTFO once what imports began is done, this build ÷ the build before", "worst", False, 1.0, settled),
        Target.of("TTFO, stock ÷ splitload", "geometric mean", True, 7.0, stock),
        Target.of("TTFO, tuned ÷ splitload", "geometric mean", True, 1.3, tuned),
        Target.of("TTFO, tuned ÷ splitload", "worst", True, 0.97, tuned),
        Target.of("TTFO ÷ steady inference of splitload, 79 MB and more", "geometric mean", False, 1.25, limit),
    ]


def _ratios(
    models: Iterable[Row],
    key: str,
    above: str,
    below: str,
    key_below: str | None = None,
    takes: Callable[[Row], bool] = lambda _: True,
) -> dict[str, float]:
    """Return the ratio of the medians of two arms, by model; models that lack an arm are left out.

    Args:
        models: Rows of the record.
        key: The figure.
        above: The arm above the line.
        below: The arm below it.
        key_below: Its figure, if that is another one.
        takes: Which models count.
    """
    return {
        row["model"]: _median(row, above, key) / _median(row, below, key_below or key)
        for row in models
        if above in row["arms"] and below in row["arms"] and takes(row)
    }


def _median(row: Row, arm: str, key: str) -> float:
    return float(row["arms"][arm][key]["median"])
