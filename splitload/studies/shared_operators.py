"""Operators as PyTorch calls them, beside published counts: `python -m splitload.studies.shared_operators`.

How they are counted is said in `splitload.frontends.torch_calls`. The counts are those of Intra-DP (arXiv 2507.05829),
which names families of networks; the members are those whose counts come nearest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from splitload.commands.console import Console
from splitload.frontends.torch_calls import calls_of
from splitload.studies.records import write_record
from splitload.studies.study import errors_in_one_line, study_parser

PUBLISHED = {  # local and global operators
    "densenet121": (428, 3), "resnet101": (341, 3), "resnext101": (342, 3), "regnet_x_400mf": (231, 3),
    "vgg19_bn": (73, 5), "convnext_base": (340, 6),
}  # fmt: skip


def row(name: str) -> dict[str, Any]:
    """Return the counts of a network."""
    calls = calls_of(f"splitload.studies.shared_networks:{name}")
    assert calls is not None  # noqa: S101 - all of them are torch modules
    return {
        "model": name,
        "published": list(PUBLISHED[name]),
        "local": dict(calls.local),
        "global": dict(calls.whole),
    }


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Count; print what came of it, and perhaps record it."""
    words = list(sys.argv[1:] if words is None else words)
    options = study_parser("shared_operators", __doc__).parse_args(words)
    console, made = Console(json=False), []
    for name, (local, whole) in PUBLISHED.items():
        made.append(row(name))
        own = (sum(made[-1][kind].values()) for kind in ("local", "global"))
        console.print(f"{name}: {' local, '.join(map(str, own))} global; published {local}, {whole}")
    if options.output:
        write_record(options.output, "shared_operators", "splitload.studies.shared_operators", words, made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
