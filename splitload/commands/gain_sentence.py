"""What a bundle gains, in sentences for people."""

from __future__ import annotations

from collections.abc import Mapping

from splitload.base.phrases import count_of, milliseconds
from splitload.planner.gain import Gain


def gain_sentence(gain: Gain) -> str:
    """Return what a bundle gains, for people."""
    here, other = (milliseconds(each["ttfo_s"]) for each in (gain.here, gain.other))
    count = count_of(gain.num_stages, "stage")
    if gain.source != "measured":
        if gain.num_stages == 1:
            return f"First output after {here}, in {count} ({gain.source})."
        return f"First output after {here} in {count}; one takes {other}, {_times(gain.ratio)} ({gain.source})."
    whole_here, whole_other = (milliseconds(each["process_s"]) for each in (gain.here, gain.other))
    process_ratio = gain.other["process_s"] / gain.here["process_s"]
    parts = [
        f"First output after {here}; a stock session takes {other}, {_times(gain.ratio)}.",
        f"Whole process {whole_here}; with a stock session it takes {whole_other}, {_times(process_ratio)}.",
    ]
    if gain.num_stages == 1:
        parts.append(f"Layout and mapping make all of the {gain.ratio:.2f}, as there is no cut.")
    elif gain.cut_ratio is None:
        parts.append("What of it comes from the cut was not measured.")
    else:
        factors = f"layout and mapping make a factor of {gain.layout_ratio:.2f}, the cut one of {gain.cut_ratio:.2f}"
        parts.append(f"Of the {gain.ratio:.2f}, {factors}.")
    return f"{' '.join(parts)} {_measured(gain.runs)}"


def buffers_sentence(arms: Mapping[str, Mapping[str, Mapping[str, float]]], runs: int) -> str | None:
    """Return what the whole process takes where tensors are buffers in place of numpy arrays, for people.

    Args:
        arms: What `summarize` returns, by the name of the arm.
        runs: Samples of each arm.

    Returns:
        None where stock or splitload-buffers was not among the arms.
    """
    if not {"stock", "splitload-buffers"} <= arms.keys():
        return None
    stock_s, here_s = (arms[name]["process_s"]["median"] for name in ("stock", "splitload-buffers"))
    return (
        f"With buffers in place of numpy arrays (splitload-buffers): whole process {milliseconds(here_s)}; with a "
        f"stock session it takes {milliseconds(stock_s)}, {_times(stock_s / here_s)}. {_measured(runs)}"
    )


def _measured(runs: int) -> str:
    """Return what lies behind measured figures."""
    return f"(Measured, {'one fresh process' if runs == 1 else f'medians of {runs} fresh processes'} each, in turns.)"


def _times(ratio: float) -> str:
    """Return a ratio as words."""
    return f"{ratio:.2f} times as long" + (", a loss" if ratio < 1 else "")
