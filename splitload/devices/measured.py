"""What was measured on devices so far: the profiles in the user's cache, each as one line for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from splitload.base.errors import ProfileError
from splitload.base.record import Record
from splitload.plan.profile import Profile


class Measurement(Record):
    """A profile, of a model on a device.

    Attributes:
        device: The name of the device.
        source: Whether its costs are "measured", or something else.
        model: The model.
        graph: Which graph of it, "native" or "portable".
        page_cache: Whether its files were in the page cache, "warm" or "cold".
        num_blocks: Blocks that the graph has.
        load_s: Seconds that the whole model loads.
        first_inference_s: Seconds that its first inference takes.
        measured_s: When that was, in seconds since 1970.
    """

    device: str
    source: str
    model: str
    graph: str
    page_cache: str
    num_blocks: int
    load_s: float
    first_inference_s: float
    measured_s: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return self._asdict()


def measurements(cache: Path) -> list[Measurement]:
    """Return what was measured, by device and model; files that are no profiles are left out.

    Args:
        cache: The user's cache folder.
    """
    found = []
    for file in (cache / "profiles").glob("*.json"):
        try:
            profile, at_s = Profile.read(file), int(file.stat().st_mtime)
        except (OSError, ProfileError):
            continue
        whole = profile.cost(0, profile.num_blocks)
        found.append(
            Measurement(
                profile.device,
                profile.source,
                profile.model,
                profile.graph,
                profile.environment.get("page_cache", "warm"),
                profile.num_blocks,
                whole.load_s,
                whole.first_inference_s,
                at_s,
            )
        )
    return sorted(found, key=lambda each: (each.device, each.model, each.graph, each.page_cache, each.measured_s))
