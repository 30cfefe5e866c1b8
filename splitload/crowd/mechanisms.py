"""The mechanisms of the crowd, each with a switch, so that its worth can be measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Affinity = Literal["finish", "tiers", "off"]
Compression = Literal["auto", "always", "off"]


@dataclass(frozen=True)
class Mechanisms:
    """What a run of the crowd makes use of.

    Attributes:
        deferred_loading: A stage is loaded only when the first item has left the stage before it. Off, the stages are
            loaded on the workers before the first item runs.
        one_resident: A worker holds one stage at most. Off, it keeps the stages it has run as long as its memory
            suffices.
        affinity: How a task finds its worker: "finish" by expected finish, loading included; "tiers" by the four tiers
            alone, best first, and expected finish between equals; "off" by expected finish without a look at where
            stages lie. See `splitload.crowd.placement`.
        compression: Whether tensors between stages are compressed: where it pays, always, never.
        streaming: An item goes on as soon as it has left a stage. Off, a stage begins when all items have left the one
            before (the barrier).
        recovery: What a lost worker held is placed anew. Off, the items it held fail.
        stage_cache: Workers keep the stages they were sent on disk. Off, a stage travels whenever it is loaded.
        hang_factor: A task that takes so many times its expected seconds is started a second time elsewhere, and the
            first result counts; None never does.
        hang_floor_s: No task counts as hanging before these seconds: its input may wait for a link that is
            busy with a stage.
    """

    deferred_loading: bool = True
    one_resident: bool = True
    affinity: Affinity = "finish"
    compression: Compression = "auto"
    streaming: bool = True
    recovery: bool = True
    stage_cache: bool = True
    hang_factor: float | None = 8.0
    hang_floor_s: float = 10.0
