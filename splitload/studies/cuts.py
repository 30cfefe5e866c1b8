"""Tries every cut point of models: `python -m splitload.studies.cuts --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.build.equality import check_graph
from splitload.commands.console import Console
from splitload.frontends import open_source, zoo
from splitload.frontends.onnx import load_graph
from splitload.studies.records import write_record
from splitload.studies.study import errors_in_one_line, study_parser


def light_models() -> list[str]:
    """Return the real topologies that ship inside the onnx package, with constant weights."""
    import importlib.util

    spec = importlib.util.find_spec("onnx")
    if spec is None or spec.origin is None:
        return []
    return [str(path) for path in sorted((Path(spec.origin).parent / "backend/test/data/light").glob("*.onnx"))]


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Check the models, write a record, and return 1 if an output differed."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("cuts", __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: every zoo and every light model")
    parser.add_argument("--set", choices=("zoo", "light"), help="only these of the default models")
    options = parser.parse_args(words)
    console = Console(json=False)
    cache = user_cache()
    rows: list[dict[str, Any]] = []
    sets = {"zoo": [f"zoo:{name}" for name in zoo.names()], "light": light_models()}
    chosen = sets[options.set] if options.set else [*sets["zoo"], *sets["light"]]
    for model in options.models or chosen:
        source = open_source(model, cache)
        for kind in ("native", "portable"):
            graph = load_graph(source, kind, cache)
            with console.progress(f"{source.name} {kind}", unit="cuts") as show:
                outcome = check_graph(source, graph, on_progress=show)
            console.print(
                f"{'passed' if outcome.passed else 'FAILED'}  {source.name:<22} {kind:<8} "
                f"{outcome.num_cuts:>4} cuts, {outcome.num_partitions} partitions, "
                f"{len(outcome.different)} differ, error against the original {outcome.original_error:.1e}"
            )
            rows.append(
                {
                    "model": source.name,
                    "model_sha256": source.sha256,
                    "graph": kind,
                    "passed": outcome.passed,
                    "num_cuts": outcome.num_cuts,
                    "num_partitions": outcome.num_partitions,
                    "different": outcome.different,
                    "original_error": outcome.original_error,
                }
            )
    if options.output:
        write_record(options.output, "cuts", "splitload.studies.cuts", words, rows)
    return int(not all(row["passed"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
