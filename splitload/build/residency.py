"""The execution scheme of a variant that is not to be in memory as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from splitload.base.errors import ModelError
from splitload.bundle.manifest import Variant
from splitload.plan.memory import StageNeeds

if TYPE_CHECKING:
    from splitload.base.sizes import Residency


@dataclass(frozen=True, slots=True)
class ResidencyScheme:
    """How much of a variant may be in memory; see `with_residency`.

    Attributes:
        residency: How much may be there: "stage", or a ceiling in bytes.
        stages: What each of its stages needs.
        arena_bytes: The working memory of a run, as measured; None where it was not.
        input_bytes: Of the inputs it was measured with; likewise.
    """

    residency: Residency
    stages: tuple[StageNeeds, ...]
    arena_bytes: int | None = None
    input_bytes: int | None = None

    def of(self, variant: Variant) -> Variant:
        """Return a variant with this scheme."""
        return with_residency(variant, self.residency, self.stages, self.arena_bytes, self.input_bytes)


def with_residency(
    variant: Variant,
    residency: Residency,
    stages: Sequence[StageNeeds],
    arena_bytes: int | None = None,
    input_bytes: int | None = None,
) -> Variant:
    """Return a variant that says how much of it may be in memory, and what its stages need; nothing of it is tuned.

    Its weights stay mapped from their files, so that pages of them can be let go of and come again. Weights that are
    rearranged or read into memory cannot: both are left out, as is the session that would take over later.

    Args:
        variant: A new variant.
        residency: How much may be there: "stage", or a ceiling in bytes.
        stages: What each of its stages needs.
        arena_bytes: The working memory of a run, as measured; None where it was not.
        input_bytes: Of the inputs it was measured with; likewise.

    Raises:
        ModelError: If a stage computes with rearranged weights only.
    """
    for number, stage in enumerate(variant.stages, start=1):
        if stage.prepack:
            raise ModelError(
                f"stage {number}, '{stage.name}', computes with rearranged weights, which cannot be let go of and come "
                "again; leave out --residency"
            )
    entries = tuple(
        stage._replace(mapped=True, prefetch=False, upgrade=False, **needs._asdict())
        for stage, needs in zip(variant.stages, stages, strict=True)
    )
    return variant._replace(stages=entries, residency=residency, arena_bytes=arena_bytes, input_bytes=input_bytes)


def needs_of_stages(variant: Variant) -> list[StageNeeds] | None:
    """Return what the stages of a variant need, as its bundle says; None where it does not."""
    stages = variant.stages
    said = [StageNeeds(*(getattr(stage, name) for name in StageNeeds._fields)) for stage in stages]
    return None if any(size is None for each in said for size in each) else said
