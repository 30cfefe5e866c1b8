"""Uses of stages on workers: each that a request begins is ended, whoever cancels it or sees it fail."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from splitload.base.errors import OutputError, StageError
from splitload.bundle.manifest import File
from splitload.crowd import supply
from splitload.crowd.members import Member
from splitload.crowd.orders import StageOrder
from splitload.crowd.supply import Supply
from splitload.deploy.stage_cache import StageCache
from splitload.deploy.stage_names import stage_key

DATA = b"weights"
FILES = (File("one.ort", len(DATA), hashlib.sha256(DATA).hexdigest()),)
STAGE = StageOrder(
    key=stage_key(FILES), name="one", graph="one.ort", files=FILES, inputs=(), outputs=(), prepack=False, mapped=True,
    optimize=False, table_start=None,
)  # fmt: skip
MEMBER = Member("tcp://pi", "pi", {}, {}, 0.0)


class Device:
    """A worker's cache as a client reaches it; a request is carried out once `gate` is open, as over a slow link."""

    def __init__(self, cache: StageCache) -> None:
        self.cache = cache
        self.gate = asyncio.Event()
        self.fault: Exception | None = None
        self.requests = 0

    def rpc(self, address: str) -> Device:
        return self

    async def splitload_request(self, crowd: str, key: str, files: list[list[Any]]) -> dict[str, int]:
        self.requests += 1
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return self.cache.request(key, [File(*file) for file in files], crowd)

    async def splitload_write(self, file: list[Any], start: int, piece: bytes) -> int:
        return self.cache.write(File(*file), start, piece)

    async def splitload_release(self, crowd: str, key: str) -> None:
        self.cache.release(key, crowd)

    def is_unused(self) -> bool:
        self.cache.remove(STAGE.key)
        return not self.cache.stages()


Scenario = Callable[[Device, Supply], Coroutine[Any, Any, None]]


def play(folder: Path, scenario: Scenario) -> None:
    async def work() -> None:
        device = Device(StageCache(folder / "cache", cap_bytes=100))
        try:
            await scenario(device, Supply(device, folder, list, "crowd"))
        finally:
            device.cache.close()

    (folder / "one.ort").write_bytes(DATA)
    asyncio.run(work())


def test_a_use_that_is_cancelled_on_its_way_is_ended(tmp_path: Path) -> None:
    async def scenario(device: Device, supply: Supply) -> None:
        sent, waiting = (asyncio.ensure_future(supply.bring(MEMBER, STAGE)) for _ in range(2))
        while not device.requests:
            await asyncio.sleep(0)
        sent.cancel()
        waiting.cancel()
        await asyncio.wait([sent, waiting])
        device.gate.set()
        await supply.bring(MEMBER, STAGE)
        await supply.end()
        device.cache.place(STAGE.key, STAGE.files)
        assert device.requests == 2, "the one that waited for its turn has asked for nothing"
        assert not device.is_unused(), "the use of the last one goes on"
        supply.release(MEMBER, STAGE)
        await supply.end()
        assert device.is_unused()

    play(tmp_path, scenario)


def test_a_request_that_is_refused_ends_no_other_use(tmp_path: Path) -> None:
    async def scenario(device: Device, supply: Supply) -> None:
        device.gate.set()
        await supply.bring(MEMBER, STAGE)
        device.cache.place(STAGE.key, STAGE.files)
        device.fault = OutputError("the disk is full")
        with pytest.raises(OutputError, match="full"):
            await supply.bring(MEMBER, STAGE)
        await supply.end()
        assert not device.is_unused()
        supply.release(MEMBER, STAGE)
        await supply.end()
        assert device.is_unused()

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("data", "told"), [(None, "was there before"), (b"", "has become shorter"), (b"weighty", "changed since the crowd")]
)
def test_a_bundle_that_changes_meanwhile_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes | None, told: str
) -> None:
    monkeypatch.setattr(supply, "_PAUSE_S", 0.0)

    async def scenario(device: Device, supply: Supply) -> None:
        device.gate.set()
        (tmp_path / "one.ort").unlink()
        if data is not None:
            (tmp_path / "one.ort").write_bytes(data)
        with pytest.raises(StageError, match=told):
            await supply.bring(MEMBER, STAGE)

    play(tmp_path, scenario)
