"""Copying stages to a device through pinned buffers, with a device that copies as late as it may."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_modules import Chain, Mixed, loaded

import splitload.torch
import splitload.torch.cuda
import splitload.torch.staging
from splitload.base.errors import StageError
from splitload.torch.staging import Mark, Staging

WAIT_S = 20
Copy = tuple[torch.Tensor, torch.Tensor]


class Moment:
    """A mark of a device that copies when somebody waits for it, and not before."""

    def __init__(self, device: Late, queue: list[Copy], length: int) -> None:
        self._device, self._queue, self._length = device, queue, length

    def wait(self) -> None:
        """Wait on the processor; not before inference has begun, where the test wants that."""
        if self._device.settle_after is not None and not self._device.settle_after.wait(WAIT_S):
            raise TimeoutError("nothing was inferred while the copies were under way")
        self._copy()

    def before_use(self) -> None:
        self._device.uses += 1
        self._copy()

    def _copy(self) -> None:
        with self._device.lock:
            while self._length and self._queue:
                target, source = self._queue.pop(0)
                self._length -= 1
                target.copy_(source)
            self._length = 0


class Late:
    """A device whose memory is the processor's; a copy that is waited for too late takes what came after."""

    settle_after: threading.Event | None = None

    def __init__(self, device: Any = None) -> None:
        self.lock = threading.Lock()
        self.pins: list[int] = []
        self.begun = 0
        self.uses = 0
        self.queues: list[list[Copy]] = []
        made.append(self)

    def memory(self, size_bytes: int) -> torch.Tensor:
        assert not self.begun
        return torch.full((size_bytes,), 255, dtype=torch.uint8)

    def begin(self) -> None:
        self.begun += 1

    def pinned(self, size_bytes: int) -> torch.Tensor:
        self.pins.append(size_bytes)
        return torch.zeros(size_bytes, dtype=torch.uint8)

    def lane(self) -> Callable[[torch.Tensor, torch.Tensor], Mark]:
        assert self.begun == 1
        queue: list[Copy] = []
        self.queues.append(queue)

        def copy(target: torch.Tensor, source: torch.Tensor) -> Mark:
            with self.lock:
                queue.append((target, source))
                return Moment(self, queue, len(queue))

        return copy


made: list[Late] = []


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> list[Late]:
    """Have "cuda" mean the device that copies late; return those made."""
    made.clear()
    monkeypatch.setattr(splitload.torch.cuda, "Cuda", Late)
    return made


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 100])
def test_a_file_comes_whole_through_small_buffers(size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10) + bytes(range(size)))
    device = Late()
    device.begin()
    staging = Staging(device, 16)
    for _ in range(2):  # with buffers that are still in use
        target = torch.full((size,), 255, dtype=torch.uint8)
        mark = staging.copy(path, 10, target, lambda: False)
        assert size == 0 or target[-1] == 255  # under way
        mark.wait()
        assert target.tolist() == list(range(size))
    assert device.pins == [16, 16]


@pytest.mark.parametrize("how", ["short", "stopped", "missing"])
def test_what_fails_leaves_no_copy_under_way(how: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(40 if how == "short" else 100))
    device = Late()
    device.begin()
    staging = Staging(device, 16)
    staging.copy(path, 0, torch.zeros(20, dtype=torch.uint8), lambda: False)
    answers = iter([False, False, how == "stopped", False, False, False, False])
    if how == "missing":
        path.unlink()
    with pytest.raises(FileNotFoundError if how == "missing" else StageError):
        staging.copy(path, 0, torch.zeros(100, dtype=torch.uint8), lambda: next(answers))
    assert device.queues == [[]]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_module_on_a_device(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Staging.__init__, "__defaults__", (64,))
    for module, inputs, stages in ((Chain().eval(), torch.ones(2, 8), 4), (Mixed().eval(), torch.ones(3), 1)):
        splitload.torch.save(module, inputs, tmp_path / "m.splitload", num_stages=stages)
        with torch.inference_mode():
            copied = loaded(type(module), tmp_path / "m.splitload", device="cuda", threads=threads)
        assert torch.equal(copied(inputs), module(inputs))
        assert splitload.torch.wait(copied, WAIT_S)
        assert torch.equal(copied(inputs), module(inputs))
        assert len(made[-1].pins) <= 2 * threads
        assert len(made[-1].queues) <= threads
        assert not any(isinstance(vars(each)["_parameters"], dict) is False for each in copied.modules())


def test_inference_does_not_wait_for_copies_on_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inferred = threading.Event()
    monkeypatch.setattr(Late, "settle_after", inferred)
    module = Chain().eval()
    splitload.torch.save(module, torch.ones(1, 8), tmp_path / "m.splitload", num_stages=2)
    copied = loaded(Chain, tmp_path / "m.splitload", device="cuda", threads=2)
    assert torch.equal(copied(torch.ones(1, 8)), module(torch.ones(1, 8)))
    assert made[0].uses > 0
    assert not splitload.torch.wait(copied, 0.0)
    inferred.set()
    assert splitload.torch.wait(copied, WAIT_S)
    uses = made[0].uses
    copied(torch.ones(1, 8))
    assert made[0].uses == uses  # nothing of splitload is left


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_module_on_a_real_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    module = Chain().eval()
    splitload.torch.save(module, torch.ones(2, 8), tmp_path / "m.splitload", num_stages=4)
    copied = loaded(Chain, tmp_path / "m.splitload", device="cuda")
    output = copied(torch.ones(2, 8, device="cuda"))
    assert torch.allclose(output.cpu(), module(torch.ones(2, 8)), atol=1e-5)
    assert splitload.torch.wait(copied, WAIT_S)
    assert all(
        torch.equal(each.cpu(), same) for each, same in zip(copied.parameters(), module.parameters(), strict=True)
    )
