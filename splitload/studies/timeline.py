"""The picture of a load, from a record: `python -m splitload.studies.timeline` draws it, `--check` compares.

`splitload.studies.first_output` makes the record. Each arm is drawn by its run of the median time to first output, on
one scale; below, the arm of most stages stands once more, on a scale of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from splitload.base.atomic import write_text
from splitload.plan.schedule import Schedule, Task
from splitload.studies.records import ROOT

RECORD = ROOT / "results" / "timeline-densenet201.json"
PICTURE = ROOT / "docs" / "timeline.svg"
_WIDTH, _LEFT, _RIGHT = 800, 150, 80  # pixels; names stand left of the bars, times right of them
_LANE, _GAP = 11, 20  # height of a lane of an arm, and what is free below it
_ROW = 20  # height of a lane in the enlarged part
_STYLE = """
  .paper { fill: #ffffff; stroke: #d0d7de; } text { fill: #1f2328; font: 13px system-ui, sans-serif; }
  .faint { fill: #59636e; font-size: 12px; } .line { stroke: #afb8c1; } .sign { fill: #ffffff; font-size: 11px; }
  .load { fill: #bc4c00; } .infer { fill: #0969da; } .edge { stroke: #ffffff; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117; stroke: #3d444d; } text { fill: #f0f6fc; } .faint { fill: #9198a1; }
    .line { stroke: #656c76; } .edge { stroke: #0d1117; } .sign { fill: #ffffff; }
  }
"""


def picture(record: Mapping[str, Any]) -> str:
    """Return a record of `first_output` as an SVG image, which follows light and dark mode."""
    rows = record["rows"]
    runs = [_median_run(row) for row in rows]
    total_s = max(run.ttfo_s for run in runs)
    many = max(range(len(rows)), key=lambda number: int(rows[number]["num_stages"]))
    parts, top = [], 74
    for row, run in zip(rows, runs, strict=True):
        parts.append(_arm(row, run, top, total_s))
        top += 2 * _LANE + _GAP
    end = _x(runs[many].ttfo_s, total_s)
    from_y, to_y = 74 + many * (2 * _LANE + _GAP) + 2 * _LANE + 3, top + 30
    for x, to_x in ((_LEFT, _LEFT), (end, _WIDTH - _RIGHT)):
        parts.append(f'<path class="line" stroke-dasharray="3 3" d="M{x:.1f} {from_y} L{to_x:.1f} {to_y}"/>')
    parts.append(_enlarged(runs[many], to_y))
    height = to_y + (1 + len(_lanes(runs[many]))) * (_ROW + 4) + 12
    return _document(_head(record) + "\n".join(parts), height, _told(rows))


def _document(body: str, height: int, told: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{told}">\n'
        f"<title>{told}</title>\n<style>{_STYLE}</style>\n"
        f'<rect class="paper" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="6"/>\n{body}\n</svg>\n'
    )


def _head(record: Mapping[str, Any]) -> str:
    """Return what is drawn, and what its colours mean."""
    row, machine = record["rows"][0], record["provenance"]["machine"]
    name, size = row["model"].removeprefix("zoo:"), f"{row['model_bytes'] / 1e6:.0f} MB"
    about = (
        f"measured on {machine['threads']} cores, warm page cache, the median of {len(row['schedules'])} runs each; "
        "time from the load call"
    )
    x = _WIDTH - 190
    return "\n".join(
        (
            _text(16, 26, f"{name} ({size}): time to first output"),
            _text(16, 46, about, "faint"),
            f'<rect class="load" x="{x}" y="16" width="12" height="12"/>{_text(x + 18, 26, "load")}',
            f'<rect class="infer" x="{x + 70}" y="16" width="12" height="12"/>{_text(x + 88, 26, "inference")}\n',
        )
    )


def _arm(row: Mapping[str, Any], run: Schedule, top: int, total_s: float) -> str:
    """Return the two lanes of an arm: its loads, and its inferences below."""
    bars = [
        _bar(task, top if task.kind == "load" else top + _LANE, _LANE, total_s, least=1.0)
        for task in sorted(run.tasks, key=lambda task: task.start_s)
    ]
    at = _x(run.ttfo_s, total_s) + 6
    name, time = _text(16, top + 15, _name(row)), _text(at, top + 15, f"{run.ttfo_s * 1e3:.0f} ms")
    return "\n".join([name, *bars, time])


def _enlarged(run: Schedule, top: int) -> str:
    """Return a lane for each loading thread and one for inference, with the numbers of stages in them."""
    parts = [f'<path class="line" d="M{_LEFT} {top} H{_WIDTH - _RIGHT}"/>', _text(16, top - 8, "enlarged:", "faint")]
    y = top + 6
    for name, tasks in _lanes(run):
        parts.append(_text(16, y + 15, name))
        for task in tasks:
            parts.append(_bar(task, y, _ROW, run.ttfo_s, least=2.0))
            width = (task.end_s - task.start_s) / run.ttfo_s * (_WIDTH - _LEFT - _RIGHT)
            if width >= 12:
                middle = _x((task.start_s + task.end_s) / 2, run.ttfo_s)
                parts.append(_text(middle, y + 14, str(task.stage + 1), "sign", 'text-anchor="middle"'))
        y += _ROW + 4
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _x(share, 1.0)
        label = f"{share * run.ttfo_s * 1e3:.0f}" + " ms" * (share == 1.0)
        parts.append(f'<path class="line" d="M{x:.1f} {y} v4"/>')
        parts.append(_text(x, y + 17, label, "faint", 'text-anchor="middle"'))
    return "\n".join(parts)


def _lanes(run: Schedule) -> list[tuple[str, list[Task]]]:
    """Return the tasks of each loading thread, and those of inference, with the name of each lane."""
    threads = sorted({task.thread for task in run.tasks if task.kind == "load"})
    lanes = [
        (f"load, thread {number}", [task for task in run.tasks if (task.kind, task.thread) == ("load", thread)])
        for number, thread in enumerate(threads, start=1)
    ]
    return [*lanes, ("inference", [task for task in run.tasks if task.kind == "infer"])]


def _bar(task: Task, y: int, height: int, total_s: float, *, least: float) -> str:
    x, end = _x(task.start_s, total_s), _x(task.end_s, total_s)
    return (
        f'<rect class="{task.kind} edge" stroke-width="0.5" x="{x:.1f}" y="{y}" width="{max(end - x, least):.1f}" '
        f'height="{height}"/>'
    )


def _x(seconds: float, total_s: float) -> float:
    return _LEFT + seconds / total_s * (_WIDTH - _LEFT - _RIGHT)


def _text(x: float, y: int, words: str, kind: str = "", more: str = "") -> str:
    attributes = " ".join(filter(None, (f'class="{kind}"' if kind else "", more)))
    return f'<text x="{x:.1f}" y="{y}"{" " * bool(attributes)}{attributes}>{escape(words)}</text>'


def _name(row: Mapping[str, Any]) -> str:
    if row["arm"] == "stock":
        return "stock session"
    return f"splitload, {row['num_stages']} stage{'s' * (row['num_stages'] > 1)}"


def _told(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the picture in words."""
    arms = "; ".join(f"{_name(row)}: {row['ttfo_s']['median'] * 1e3:.0f} ms" for row in rows)
    return escape(f"Time to first output, {arms}")


def _median_run(row: Mapping[str, Any]) -> Schedule:
    """Return the run whose time to first output is the median of all, the upper of two in the middle."""
    runs = [Schedule(tuple(Task(**task) for task in each["tasks"]), each["source"]) for each in row["schedules"]]
    return sorted(runs, key=lambda run: run.ttfo_s)[len(runs) // 2]


def main(words: Sequence[str] | None = None) -> int:
    """Draw the picture, or with `--check` return 1 if it is not that of the record."""
    parser = argparse.ArgumentParser(prog="python -m splitload.studies.timeline", description=__doc__)
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE", help="what is drawn")
    parser.add_argument("-o", "--output", type=Path, default=PICTURE, metavar="FILE", help="where the picture goes")
    parser.add_argument("--check", action="store_true", help="change nothing, fail where the picture is out of date")
    options = parser.parse_args(words)
    drawn = picture(json.loads(options.record.read_text(encoding="utf-8")))
    if options.check:
        return int(not options.output.is_file() or options.output.read_text(encoding="utf-8") != drawn)
    write_text(options.output, drawn, "the picture")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
