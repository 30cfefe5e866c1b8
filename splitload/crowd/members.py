"""The workers of a crowd as its client sees them: who joins, who leaves, and who has fallen silent.

The scheduler tells at once of a process that ended. One that hangs, or whose link is cut, still counts there, so each
worker is asked how it is twice a second: who does not answer in time is silent, and who answers again is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from splitload import __version__
from splitload.base.errors import ClusterError, SplitloadError
from splitload.crowd.worker import Equip
from splitload.plan.schedule import Task

ASK_EVERY_S = 0.5
ANSWER_S = 1.2  # with the pause before, a worker is found silent within 1.7 s
_ASKS_PER_S = 200.0  # of all workers together
_JOIN_S = 10.0
_GATHER_EVERY_S = 0.1
WORKERS_S = 10.0  # how long the first worker is waited for


@dataclass
class Member:
    """One worker, and what is known of it.

    Attributes:
        address: Where it listens, its name in the scheduling.
        name: What it is called.
        introduced: What it runs stages by: "cpu", "runtime", "engine" and "splitload".
        told: Its last answer, see `StageWorker.hello`.
        clock_ahead_s: Its clock's seconds minus this process's.
        is_silent: Whether it did not answer lately.
        banned: Why it gets no tasks, or None.
        tasks: Stages that it loaded and ran, in seconds of this process's clock.
        done: Number of tasks that counted.
        link_bytes_per_s: What its link has carried, in bytes a second; None where that is not known.
        first_cpu_s: Processor seconds that its process had taken when it joined.
    """

    address: str
    name: str
    introduced: dict[str, str]
    told: dict[str, Any]
    clock_ahead_s: float
    is_silent: bool = False
    banned: str | None = None
    tasks: list[Task] = field(default_factory=list)
    done: int = 0
    link_bytes_per_s: float | None = None
    first_cpu_s: float = 0.0

    def note_link(self, size: int, seconds: float) -> None:
        """Take what a transfer has shown of its link; small ones show its delay instead."""
        if size >= 1 << 16 and seconds > 0:
            seen = size / seconds
            self.link_bytes_per_s = seen if self.link_bytes_per_s is None else 0.7 * self.link_bytes_per_s + 0.3 * seen


class Listener(Protocol):
    """Who is told of workers."""

    def joined(self, member: Member) -> None:
        """Take that a worker takes part that is new, or is back."""

    def left(self, member: Member, why: str) -> None:
        """Take that one does not take part any more."""

    def lost(self, why: str) -> None:
        """Take that there is no scheduler any more."""


class Members:
    """Watches the workers, in the event loop of a client.

    Attributes:
        crowd: Name of the crowd.
        present: Those that the scheduler has, by address.
        gone: Those that it had.
        refused: Addresses of those that cannot run stages, and why.

    Args:
        client: A `distributed.Client`.
        crowd: Name of the crowd, by which workers know that its client is there.
    """

    def __init__(self, client: Any, crowd: str) -> None:
        self.crowd = crowd
        self.present: dict[str, Member] = {}
        self.gone: list[Member] = []
        self.refused: dict[str, str] = {}
        self._client = client
        self._listener: Listener | None = None
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._numbers: dict[str, int] = {}

    async def gather(self) -> list[Member]:
        """Have the workers keep and run stages, and return those that do, once there is one.

        Raises:
            ClusterError: If there is none.
        """
        await self._client.register_plugin(Equip())
        deadline_s = time.perf_counter() + WORKERS_S
        while True:
            await self._compare()
            if met := self.active():
                return met
            if time.perf_counter() > deadline_s:
                break
            await asyncio.sleep(_GATHER_EVERY_S)
        address = self._client.scheduler.address
        if self.refused:
            reasons = "; ".join(f"{worker}: {why}" for worker, why in self.refused.items())
            raise ClusterError(f"no worker of {address} can run stages ({reasons})")
        raise ClusterError(f"the scheduler at {address} has no worker; 'splitload crowd worker {address}' starts one")

    def begin(self, listener: Listener) -> None:
        """Begin to watch, and to tell of it."""
        self._listener = listener
        self._watch = asyncio.ensure_future(self._watch_scheduler())

    async def end(self) -> None:
        """Watch no more."""
        watches = [*self._watches.values(), *([] if self._watch is None else [self._watch])]
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    def number(self, member: Member) -> int:
        """Return a worker's number, in the order in which they joined."""
        return self._numbers.setdefault(member.address, len(self._numbers))

    def active(self) -> list[Member]:
        """Return the workers that may get tasks."""
        return [member for member in self.present.values() if not member.is_silent and member.banned is None]

    def ban(self, member: Member, why: str) -> None:
        """Give a worker no more tasks."""
        if member.banned is None:
            member.banned = why
            self._tell_left(member, why)

    async def _watch_scheduler(self) -> None:
        connection = self._client.scheduler_comm
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            with contextlib.suppress(Exception):  # whatever a client that ends raises here
                await self._compare()
            if self._client.scheduler_comm is not connection or self._client.status != "running":
                # Dask connects anew, but tasks are forgotten by then, and nobody would hear of those that follow.
                if self._listener is not None:
                    self._listener.lost("the connection to the scheduler of the crowd broke: it has ended, or its link")
                return

    async def _compare(self) -> None:
        """Compare who is here with who is part of the cluster now."""
        cores = await asyncio.wait_for(self._client.scheduler.ncores(), _JOIN_S)
        for address in self.present.keys() - cores.keys():
            self._part(address)
        for address in self.refused.keys() - cores.keys():  # what comes back there may be able to
            del self.refused[address]
        new = [address for address in cores if address not in self.present and address not in self.refused]
        await asyncio.gather(*(self._meet(address) for address in new))

    async def _meet(self, address: str) -> None:
        """Ask a worker what it is, and have it take part."""
        worker = self._client.rpc(address)
        try:
            introduced = await asyncio.wait_for(worker.splitload_introduce(), _JOIN_S)
            told, ahead_s = await self._ask(address)
        except Exception as error:  # whatever it cannot do: run stages, above all
            if isinstance(error, SplitloadError) or not isinstance(error, OSError):  # else it is asked again
                self.refused[address] = " ".join(str(error).split())
            return
        if introduced["splitload"] != __version__:
            self.refused[address] = f"it has splitload {introduced['splitload']}, and here is {__version__}"
            return
        if address in self.present:  # met by who compared at the same time
            return
        member = Member(address, str(introduced["name"]), introduced, told, ahead_s, first_cpu_s=told["cpu_s"])
        self.present[address] = member
        self.number(member)
        self._watches[address] = asyncio.ensure_future(self._watch_worker(member))
        if self._listener is not None:
            self._listener.joined(member)

    def _part(self, address: str) -> None:
        member = self.present.pop(address)
        self.gone.append(member)
        self._watches.pop(address).cancel()
        if not member.is_silent and member.banned is None:
            self._tell_left(member, "it has ended")

    async def _watch_worker(self, member: Member) -> None:
        while True:
            await asyncio.sleep(self._pause_s())
            try:
                told, ahead_s = await asyncio.wait_for(self._ask(member.address), ANSWER_S)
            except Exception as error:  # a link, a process or a cluster that ends: whatever it raises here
                if not isinstance(error, TimeoutError):  # the scheduler knows whether the process has ended
                    await asyncio.sleep(_GATHER_EVERY_S)
                    with contextlib.suppress(OSError):
                        await self._compare()
                    if self.present.get(member.address) is not member:
                        return
                if not member.is_silent:
                    member.is_silent = True
                    if member.banned is None:
                        self._tell_left(member, f"it did not answer for {ANSWER_S:.1f} s")
                continue
            member.told = told
            member.clock_ahead_s = ahead_s
            if member.is_silent:
                member.is_silent = False
                if member.banned is None and self._listener is not None:
                    self._listener.joined(member)

    def _pause_s(self) -> float:
        return max(ASK_EVERY_S, len(self.present) / _ASKS_PER_S)

    def _tell_left(self, member: Member, why: str) -> None:
        if self._listener is not None:
            self._listener.left(member, why)

    async def _ask(self, address: str) -> tuple[dict[str, Any], float]:
        """Ask a worker how it is; return that, and how far its clock is ahead."""
        start_s = time.perf_counter()
        told = await self._client.rpc(address).splitload_hello(crowd=self.crowd, every_s=self._pause_s())
        return told, told["clock_s"] - (start_s + time.perf_counter()) / 2
