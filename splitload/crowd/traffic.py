"""How many bytes a crowd has sent, and how many compressing has saved: payloads, without what TCP, TLS and Dask add."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Traffic:
    """What was sent.

    Attributes:
        inputs_bytes: Inputs of the model, from the client to workers.
        between_bytes: Tensors between stages, from worker to worker.
        outputs_bytes: Outputs of the model, from workers to the client.
        saved_bytes: What tensors between stages took less than plainly.
    """

    inputs_bytes: int = 0
    between_bytes: int = 0
    outputs_bytes: int = 0
    saved_bytes: int = 0

    def note_between(self, made_bytes: int, plain_bytes: int) -> None:
        """Take that a tensor went from one worker to another; `plain_bytes` is what it would take uncompressed."""
        self.between_bytes += made_bytes
        self.saved_bytes += plain_bytes - made_bytes
