"""What `splitload train` and `inspect` print of memory: what each stage needs of it, and how much there may be."""

from __future__ import annotations

from collections.abc import Sequence

from splitload.base.sizes import megabytes
from splitload.build.residency import needs_of_stages
from splitload.bundle.manifest import Variant
from splitload.commands.console import Console
from splitload.plan.memory import StageNeeds, peak_bytes
from splitload.runtime.residency import Needs


def show_residency(variant: Variant, console: Console) -> None:
    """Print how much of a variant may be in memory, and what its stages need, where its bundle says so."""
    if variant.residency is None:
        return
    limit = "one stage's weights" if variant.residency == "stage" else megabytes(variant.residency)
    console.print(f"at most {limit} in memory at a time")
    needs = needs_of_stages(variant)
    if needs is not None:
        show_needs(console, needs, Needs(variant).arena, variant.residency)


def show_needs(console: Console, stages: Sequence[StageNeeds], arena_bytes: int, residency: str | int | None) -> None:
    """Print what stages need of memory, and how much that is at a time.

    Args:
        console: Where to print it.
        stages: What each stage needs.
        arena_bytes: The working memory of a run.
        residency: How much there may be.
    """
    columns = ("stage", "weights MB", "own tensors MB", "waiting tensors MB", "session MB")
    sizes = [(each.mapped_bytes, each.working_bytes, each.passing_bytes, each.session_bytes) for each in stages]
    rows = [(str(number), *(f"{size / 1e6:.2f}" for size in row)) for number, row in enumerate(sizes, start=1)]
    console.table("memory that each stage needs, predicted", columns, rows)
    limit = f", of {megabytes(residency)} that may be there" if isinstance(residency, int) else ""
    console.print(
        f"the most at a time: {megabytes(peak_bytes(stages, arena_bytes))}{limit} (predicted; the largest stage's "
        f"weights, {megabytes(arena_bytes)} that a run takes besides, all sessions)"
    )
