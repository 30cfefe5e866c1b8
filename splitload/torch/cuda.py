"""CUDA as `splitload.torch.staging` asks for it: pinned memory, a stream for the copies of each thread, events.

Nothing here is run where there is no GPU; what stands on it is tested with another backend.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from splitload.base.errors import UsageError
from splitload.torch.staging import Mark


class CudaMark:
    """An event on a copy stream."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._device = stream.device
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(stream)

    def wait(self) -> None:
        """Return when the copies before it are done."""
        self._event.synchronize()

    def before_use(self) -> None:
        """Have the current stream of the calling thread wait for it, not the thread."""
        torch.cuda.current_stream(self._device).wait_event(self._event)


class Cuda:
    """One GPU.

    Args:
        device: Which.

    Raises:
        UsageError: If there is none, or no such one.
    """

    def __init__(self, device: torch.device) -> None:
        if not torch.cuda.is_available():
            raise UsageError(f"device is '{device}', but torch finds no GPU here; give 'cpu'")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise UsageError(f"device is '{device}', but torch finds {torch.cuda.device_count()} GPU(s) here")
        self._device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self._begun = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def memory(self, size_bytes: int) -> torch.Tensor:
        """Return bytes on the GPU, of the current stream of the calling thread."""
        return torch.empty(size_bytes, dtype=torch.uint8, device=self._device)

    def begin(self) -> None:
        """Have all copies wait for what the current stream still does with memory that was taken."""
        self._begun.record(torch.cuda.current_stream(self._device))

    def pinned(self, size_bytes: int) -> torch.Tensor:
        """Return pinned bytes; torch keeps them for the next load when they are let go."""
        with torch.cuda.device(self._device):
            return torch.empty(size_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def lane(self) -> Callable[[torch.Tensor, torch.Tensor], Mark]:
        """Return a call that copies on a stream of its own."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_event(self._begun)

        def begin_copy(target: torch.Tensor, source: torch.Tensor) -> Mark:
            with torch.cuda.stream(stream):
                target.copy_(source, non_blocking=True)
            return CudaMark(stream)

        return begin_copy
