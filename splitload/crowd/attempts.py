"""Attempts at tasks on their way through Dask: sent with what they need, withdrawn, and what they made brought home."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from distributed.protocol import to_serialize

from splitload.crowd.beside import Beside
from splitload.crowd.chain import Chain, Link
from splitload.crowd.entities import Assignment, Preparation
from splitload.crowd.mechanisms import Mechanisms
from splitload.crowd.members import Member
from splitload.crowd.orders import TaskOrder, key_of, written
from splitload.crowd.placement import Tier
from splitload.crowd.supply import Supply
from splitload.crowd.worker import run_task
from splitload.plan.schedule import Task

_INLINE_BYTES = 1 << 14  # smaller inputs go along with their task

_REST_S = 2.0
_KINDS: tuple[tuple[Literal["load", "infer"], str], ...] = (("load", "load"), ("infer", "run"))

Answer = Callable[[bytes | None, Exception | None], None]


@dataclass
class Attempt:
    """An order of the pipeline that a worker is carrying out.

    Attributes:
        order: The order.
        member: Who does.
        chain: What it runs.
        future: Dask's future; None until it is submitted.
        work: What sends it.
        fetch_s: Seconds that the stage travelled for it.
        uses_stage: Whether the worker's cache holds the stage for it.
        sent: Times that the stage was sent for it.
    """

    order: Assignment | Preparation
    member: Member
    chain: Chain
    future: Any = None
    work: asyncio.Task[None] | None = None
    fetch_s: float | None = None
    uses_stage: bool = False
    sent: int = 0

    @property
    def stage(self) -> int:
        """The stage's place in the chain."""
        return self.order.task.stage if isinstance(self.order, Assignment) else self.order.stage

    @property
    def link(self) -> Link:
        """The stage, as the worker runs it."""
        return self.chain.links[self.stage]

    def note_times(self, told: dict[str, Any], start_s: float, device: int) -> None:
        """Note when a stage was loaded and run, in seconds from the start of the crowd.

        Args:
            told: What the task tells of itself, on its worker's clock.
            start_s: When the crowd began, on this process's.
            device: The worker's number.
        """
        ahead_s = self.member.clock_ahead_s + start_s
        for kind, prefix in _KINDS:
            if (taken_s := told.get(f"{prefix}_s")) is not None:
                begin_s = max(0.0, told[f"{prefix}_start_s"] - ahead_s)
                self.member.tasks.append(Task(self.stage, kind, device, begin_s, begin_s + taken_s))

    def forget_future(self) -> None:
        """Let Dask forget it: what it made, or that it is to run."""
        if self.future is not None:
            self.future.release()
            self.future = None


@dataclass
class Output:
    """What a task has made, on the worker that has it.

    Attributes:
        attempt: Who made it.
        made_bytes: What it takes as it travels.
        plain_bytes: What it would take if nothing were compressed.
    """

    attempt: Attempt
    made_bytes: int
    plain_bytes: int


@dataclass
class Entry:
    """An item under way.

    Attributes:
        parcel: Its input.
        answer: Who is told of its output.
        output: The parcel of that, once it is here.
        deaths: Workers that ended while they ran it, by stage.
    """

    parcel: bytes
    answer: Answer
    output: bytes | None = None
    deaths: Counter[int] = field(default_factory=Counter)

    def died(self, stage: int) -> int:
        """Count one more worker that ended while it ran a stage; return how many did."""
        self.deaths[stage] += 1
        return self.deaths[stage]


class Sender:
    """Sends attempts of one crowd, in the event loop of a client.

    Args:
        client: A `distributed.Client`.
        crowd: Name of the crowd.
        mechanisms: See `Mechanisms`.
        supply: Sends stages.
    """

    def __init__(self, client: Any, crowd: str, mechanisms: Mechanisms, supply: Supply) -> None:
        self._client, self._crowd, self._mechanisms, self._supply = client, crowd, mechanisms, supply

    async def send(self, attempt: Attempt, given: Callable[[], Any]) -> None:
        """Have everything that an attempt needs on its worker, and submit it to Dask.

        Args:
            attempt: The attempt.
            given: Returns its input, once the stage is there: a parcel, what another task has made, or None for none.

        Raises:
            MissingInputError: If its input cannot be had from the worker that made it.
            SplitloadError: If the worker cannot keep the stage.
            OSError: If the connection to it breaks.
            KeyError: If `given` raises it.
        """
        order, member, link = attempt.order, attempt.member, attempt.link
        if not (isinstance(order, Assignment) and order.tier is Tier.RESIDENT) or attempt.sent:
            attempt.sent += 1
            attempt.fetch_s = await self._supply.bring(member, link.order)
            attempt.uses_stage = True
        source = await self._brought(attempt, given())
        attempt.future = self._client.submit(
            run_task, self._text(attempt), source, key=key_of(self._crowd, order.attempt, attempt.sent),
            workers=[member.address], allow_other_workers=False, pure=False, retries=0,
        )  # fmt: skip

    async def _brought(self, attempt: Attempt, given: bytes | Output | None) -> Any:
        """Bring the input of an attempt to its worker, and return what its task is called with.

        Dask would fetch it as well, but from any worker that has a copy, be it one that is silent by now.
        """
        worker, number = self._client.rpc(attempt.member.address), attempt.order.attempt
        if isinstance(given, Output):
            maker = given.attempt
            if maker.member is attempt.member:
                return maker.future
            taken = await worker.splitload_take(
                crowd=self._crowd, attempt=number, source=maker.member.address, made=[maker.order.attempt, maker.sent]
            )
            attempt.member.note_link(taken["bytes"], taken["seconds"])
            return None
        if given is None or len(given) <= _INLINE_BYTES:
            return given
        start_s = time.perf_counter()
        await worker.splitload_put(crowd=self._crowd, attempt=number, parcel=to_serialize(given))
        attempt.member.note_link(len(given), time.perf_counter() - start_s)
        return None

    async def withdraw(self, attempt: Attempt) -> bool:
        """Have a worker not begin an attempt; return whether it had not."""
        worker = self._client.rpc(attempt.member.address)
        has_begun = await worker.splitload_drop(crowd=self._crowd, attempt=attempt.order.attempt, sent=attempt.sent)
        return not has_begun

    async def made(self, attempt: Attempt) -> bytes:
        """Return what an attempt has made.

        Raises:
            Exception: Whatever a worker that ends raises here.
        """
        worker = self._client.rpc(attempt.member.address)
        return bytes(await worker.splitload_give(crowd=self._crowd, attempt=attempt.order.attempt, sent=attempt.sent))

    async def rest(self, members: Sequence[Member], given: Sequence[Attempt]) -> None:
        """Have workers let go of their stages, without waiting long for it.

        Args:
            members: The workers.
            given: What they were given and is not done; what has not begun would open a stage again.
        """

        async def rest(member: Member) -> None:
            for attempt in given:
                if attempt.member is member:
                    await self.withdraw(attempt)
            await self._client.rpc(member.address).splitload_rest(crowd=self._crowd)

        rests = Beside()
        for member in members:
            rests.do(rest(member))
        await rests.finish(_REST_S)

    def release_stage(self, attempt: Attempt) -> None:
        """Let the worker's cache evict the stage of an attempt."""
        if attempt.uses_stage:
            attempt.uses_stage = False
            self._supply.release(attempt.member, attempt.link.order)

    def _text(self, attempt: Attempt) -> str:
        order, link = attempt.order, attempt.link
        evicted = order.unload if isinstance(order, Assignment) else ()
        return written(
            TaskOrder(
                crowd=self._crowd,
                attempt=order.attempt,
                stage=link.order,
                runs=isinstance(order, Assignment),
                needed=link.needed,
                carried=link.carried,
                unload=tuple(attempt.chain.links[stage].order.key for stage in evicted),
                alone=self._mechanisms.one_resident,
                keep=self._mechanisms.stage_cache,
                compression=self._mechanisms.compression,
                link_bytes_per_s=attempt.member.link_bytes_per_s,
            )
        )
