"""Profile files: how one is written, and one in place of a device, which a search then runs on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from splitload.base.atomic import write_text
from splitload.base.errors import ProfileError
from splitload.devices import Progress
from splitload.graphs.here import HERE
from splitload.graphs.runtime import GraphRuntime
from splitload.plan.graph import GraphKind, ModelGraph
from splitload.plan.profile import Profile


class StoredDevice:
    """The device a profile file was made on.

    Args:
        path: The profile file.

    Raises:
        ProfileError: If it does not hold a profile.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._profile = Profile.read(path)
        self.name = self._profile.device
        self.source: Literal["measured", "simulated"] = self._profile.source
        self.graph_kind: GraphKind = self._profile.graph
        self.description = f"profile of {self._profile.model} stored in {path.name}"

    @property
    def runtime(self) -> GraphRuntime:
        """This machine's: a native graph for what is not there is laid out for this processor."""
        return HERE

    @property
    def measuring(self) -> None:
        """None: what was measured or computed is stored."""
        return None

    def profile(
        self,
        graph: ModelGraph,
        *,
        feeds: Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
    ) -> Profile:
        """Return the stored profile; see `Device.profile`.

        Raises:
            ProfileError: If it is of another model, or of the same one divided into other blocks.
        """
        stored = self._profile
        if stored.model_sha256 != graph.source_sha256:
            raise ProfileError(
                f"{self._path.name} is a profile of '{stored.model}' ({stored.model_sha256[:12]}…), "
                f"not of '{graph.name}' ({graph.source_sha256[:12]}…); make one with 'splitload profile'"
            )
        if [block.name for block in stored.blocks] != [block.name for block in graph.blocks]:
            raise ProfileError(
                f"{self._path.name} has {stored.num_blocks} other blocks than the model's {len(graph.blocks)}: "
                "it was made with another --max-blocks or runtime version; make it again with 'splitload profile'"
            )
        return stored


def write_profile(path: Path, profile: Profile) -> None:
    """Write a profile file; an older one stays until the new one is whole.

    Raises:
        OutputError: If it cannot be written.
    """
    write_text(path, json.dumps(profile.to_json(), indent=1), "profile")
