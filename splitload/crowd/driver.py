"""Runs a crowd's pipeline on Dask: carries out its steps, and tells it what becomes of them, in a client's event loop.

Each attempt at a task is a Dask future of its own, pinned to the worker that the pipeline chose. Its input is there
before it is submitted, as its worker takes it from the one that made it. A task tells of itself by an event, whatever
becomes of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from pathlib import Path
from typing import Any

from splitload.base.errors import ClusterError, SplitloadError, StageError
from splitload.crowd.attempts import Answer, Attempt, Entry, Output, Sender
from splitload.crowd.beside import Beside
from splitload.crowd.chain import Chains
from splitload.crowd.entities import Assignment, Fetch, Measured, Preparation, Task, Worker
from splitload.crowd.members import Member, Members
from splitload.crowd.orders import topic
from splitload.crowd.pipeline import Pipeline
from splitload.crowd.supply import Supply
from splitload.crowd.traffic import Traffic
from splitload.crowd.worker import MissingInputError
from splitload.plan.crowd import RUNTIME_BYTES

LEFT_ALONE_S = 10.0  # how long a crowd without workers waits for one to come
_LOOK_EVERY_S = 0.5
_LINK_BYTES_PER_S = 12.5e6  # 100 Mbit/s: a guess, until a stage has travelled; were it free, all would fetch all stages
_MOST_DEATHS = 3  # of workers that ran one task: then it is the task's fault
_MOST_SENT = 3  # times that a stage is sent to one worker for one task


class Driver:
    """One crowd at work; a `Listener` of its members. Everything is called in the client's event loop.

    Attributes:
        members: The workers.
        chains: What they run.
        supply: What sends them stages.
        traffic: What else was sent.
        notes: What the user should know of workers, by their names.
        start_s: When it began, of `time.perf_counter`.
    """

    def __init__(
        self,
        client: Any,
        folder: Path,
        members: Members,
        chains: Chains,
        pipeline: Pipeline,
        ceiling_bytes: int | None,
    ) -> None:
        self.start_s = time.perf_counter()
        self.members, self.chains = members, chains
        self.supply = Supply(client, folder, members.active, members.crowd)
        self.traffic = Traffic()
        self.notes: dict[str, str] = {}
        self._client, self._pipeline, self._ceiling_bytes = client, pipeline, ceiling_bytes
        self._sender = Sender(client, members.crowd, pipeline.mechanisms, self.supply)
        self._error: SplitloadError | None = None
        self._absent: set[str] = set()  # addresses of workers that were part of it
        self._attempts: dict[int, Attempt] = {}
        self._outputs: dict[Task, Output] = {}
        self._entries: dict[int, Entry] = {}
        self._beside = Beside()
        self._loop = asyncio.get_running_loop()
        self._next_step: asyncio.Handle | None = None
        self._wake: asyncio.TimerHandle | None = None
        self._alone_since_s: float | None = None
        client.subscribe_topic(topic(members.crowd), self._told)
        for member in members.active():
            self.joined(member)
        members.begin(self)
        self._look = asyncio.ensure_future(self._look_around())

    async def end(self) -> None:
        """Withdraw what has not begun, and have the workers let go of their stages."""
        self._fail(ClusterError("the crowd was closed"))
        await self.members.end()
        live = list(self._attempts.values())
        await self._beside.end(self._look, *(each.work for each in live if each.work is not None))
        for attempt in live:
            self._end_attempt(attempt)
        for output in self._outputs.values():
            output.attempt.forget_future()
        await self.supply.end()
        if self._client.status == "running":
            self._client.unsubscribe_topic(topic(self.members.crowd))
            await self._sender.rest(self.members.active(), live)

    def add(self, item: int, parcel: bytes, answer: Answer) -> None:
        """Take an item in.

        Args:
            item: Its number, above those before.
            parcel: The model's inputs.
            answer: Called with the parcel of its outputs or with its error, here.
        """
        if self._error is not None:
            answer(None, self._error)
            return
        self._entries[item] = Entry(parcel, answer)
        self._pipeline.add_item(item)
        self._go_on()

    def room(self) -> float:
        """Return how many more items could be on their way now; once all has failed, any number can fail as well."""
        return self._pipeline.room if self._error is None else math.inf

    def joined(self, member: Member) -> None:
        """Let a worker take part that is new, or is back."""
        chains, told = self.chains, member.told
        if member.address not in chains.of and not chains.join(member.address, member.introduced):
            self.members.ban(member, "the stages that the others run are for another processor or runtime")
            return
        note = chains.notes.get(member.address, "")
        if member.address in self._absent:
            self._absent.discard(member.address)
            note = f"{note}; it was silent for a while, and is back".removeprefix("; ")
        if note:
            self.notes[member.name] = note
        places = {link.order.key: place for place, link in enumerate(chains.of[member.address].links)}
        own_bytes = None if told["memory_bytes"] is None else told["memory_bytes"] - RUNTIME_BYTES
        limits = [limit for limit in (own_bytes, self._ceiling_bytes) if limit is not None]
        self._pipeline.add_worker(
            Worker(
                name=member.address,
                memory_bytes=min(limits, default=None),
                link_bytes_per_s=member.link_bytes_per_s or _LINK_BYTES_PER_S,
                cached=frozenset(places[key] for key in told["cached"] if key in places),
                resident=next((places[key] for key in told["resident"] if key in places), None),
                measured={
                    places[key]: Measured(run_s, load_s)
                    for key, (load_s, run_s) in told["seconds"].items()
                    if key in places
                },
            ),
            self._now_s(),
        )
        self._go_on()

    def left(self, member: Member, why: str) -> None:
        """Place anew what a worker had that is gone, or silent."""
        self.notes[member.name] = why
        self._absent.add(member.address)
        self.supply.forget(member.address)
        mine = [each for each in self._attempts.values() if each.member is member]
        if member.address not in self.members.present:
            self._blame(next((each for each in mine if each.future is not None), None))
        for attempt in mine:
            self._end_attempt(attempt)
        for task, output in list(self._outputs.items()):
            if output.attempt.member is member:
                self._outputs.pop(task).attempt.forget_future()
        self._pipeline.remove_worker(member.address, self._now_s())
        for attempt in list(self._attempts.values()):
            if isinstance(attempt.order, Assignment) and attempt.order.input_worker == member.address:
                self._lose_input(attempt)
        self._go_on()

    def lost(self, why: str) -> None:
        """End everything: there is no scheduler any more."""
        self._fail(ClusterError(why))

    def _go_on(self) -> None:
        """Have the pipeline asked for its next step, once all that happens now is told."""
        if self._next_step is None and self._error is None:
            self._next_step = self._loop.call_soon(self._step)

    def _step(self) -> None:
        """Carry out what the pipeline wants done now."""
        self._next_step = None
        if self._error is not None:
            return
        step = self._pipeline.step(self._now_s())
        for cancelled in step.cancels:
            if (withdrawn := self._attempts.get(cancelled.attempt)) is not None:
                self._withdraw(withdrawn)
        for task in step.releases:
            if (output := self._outputs.pop(task, None)) is not None:
                output.attempt.forget_future()
        orders: tuple[Assignment | Preparation, ...] = (*step.preparations, *step.assignments)
        for order in orders:
            attempt = Attempt(order, self.members.present[order.worker], self.chains.of[order.worker])
            self._attempts[order.attempt] = attempt
            attempt.work = asyncio.ensure_future(self._send(attempt))
        for fetch in step.fetches:
            self._beside.do(self._bring_home(fetch))
        if self._wake is not None:
            self._wake.cancel()
        self._wake = None
        if not math.isinf(step.wake_s):
            self._wake = self._loop.call_later(max(0.01, step.wake_s - self._now_s()), self._go_on)
        for outcome in self._pipeline.take(ordered=False):
            entry = self._entries.pop(outcome.item)
            entry.answer(entry.output if outcome.error is None else None, outcome.error)
        if self._entries and self.members.active() and (lacking := self._pipeline.lacking()) is not None:
            for member in self.members.active():
                lacking = lacking.replace(member.address, member.name)
            self._fail(ClusterError(lacking))

    async def _send(self, attempt: Attempt) -> None:
        """Send an attempt; what keeps its worker from it is no fault of the item."""
        try:
            await self._sender.send(attempt, lambda: self._given(attempt.order))
        except MissingInputError:
            self._lose_input(attempt)
        except SplitloadError as error:
            self._refuse(attempt, str(error))
        except (KeyError, OSError):  # its input, or its item, is gone meanwhile; or its worker is about to be
            self._drop(attempt)
        except Exception as error:  # whatever else a worker raises here
            self._refuse(attempt, f"{type(error).__name__}: {error}")

    def _given(self, order: Assignment | Preparation) -> Any:
        """Return the input of an order: a parcel, or what another task has made; None where it only loads."""
        if not isinstance(order, Assignment):
            return None
        if order.task.stage:
            return self._outputs[Task(order.task.stage - 1, order.task.item)]
        parcel = self._entries[order.task.item].parcel
        self.traffic.inputs_bytes += len(parcel)
        return parcel

    def _told(self, event: tuple[float, dict[str, Any]]) -> None:
        """Take what a task tells of itself."""
        _, told = event
        attempt = self._attempts.get(told["attempt"])
        if attempt is None or self._error is not None:
            return
        attempt.member.told.update({key: told[key] for key in ("peak_bytes", "cpu_s", "most_resident")})
        failed = told.get("failed")
        order, now_s = attempt.order, self._now_s()
        if failed is None:
            self._take_report(attempt, told)
        elif failed == "files" and attempt.sent < _MOST_SENT:
            self._send_again(attempt)
        elif failed == "input":  # what was brought there has been given up for later ones
            self._drop(attempt)
        elif failed == "item" and isinstance(order, Assignment):
            self._end_attempt(attempt)
            self._pipeline.failed(order, now_s, StageError(told["error"]))
        else:
            self._refuse(attempt, told["error"])
        self._go_on()

    def _take_report(self, attempt: Attempt, told: dict[str, Any]) -> None:
        """Take that an attempt is done."""
        order, now_s = attempt.order, self._now_s()
        del self._attempts[order.attempt]
        self._sender.release_stage(attempt)
        measured = Measured(told.get("run_s", 0.0), told["load_s"], attempt.fetch_s, told.get("made_bytes"))
        attempt.note_times(told, self.start_s, self.members.number(attempt.member))
        if isinstance(order, Preparation):
            self._pipeline.prepared(order, now_s, measured)
            attempt.forget_future()
            return
        read = self._outputs.get(Task(order.task.stage - 1, order.task.item))
        if read is not None and order.input_worker != order.worker:
            self.traffic.note_between(read.made_bytes, read.plain_bytes)
        if self._pipeline.finished(order, now_s, measured):
            attempt.member.done += 1
            self._outputs[order.task] = Output(attempt, told["made_bytes"], told["plain_bytes"])
        else:
            attempt.forget_future()

    def _send_again(self, attempt: Attempt) -> None:
        """Send a stage again that a worker has found missing or damaged on its disk."""
        attempt.forget_future()
        attempt.sent = max(1, attempt.sent)
        self.supply.forget(attempt.member.address, attempt.link.order)
        self._sender.release_stage(attempt)
        attempt.work = asyncio.ensure_future(self._send(attempt))

    def _refuse(self, attempt: Attempt, why: str) -> None:
        """Take that a worker cannot hold a stage; the user is told why."""
        self._end_attempt(attempt)
        self.notes[attempt.member.name] = " ".join(why.split())
        self._pipeline.refused(attempt.order, self._now_s(), self.notes[attempt.member.name])
        self._go_on()

    def _drop(self, attempt: Attempt) -> None:
        """Take that an attempt came to nothing, through no fault of its item or worker."""
        self._end_attempt(attempt)
        if isinstance(attempt.order, Assignment):
            self._pipeline.dropped(attempt.order, self._now_s())
        self._go_on()

    def _end_attempt(self, attempt: Attempt) -> None:
        """Follow an attempt no more."""
        self._attempts.pop(attempt.order.attempt, None)
        if attempt.work is not None and attempt.work is not asyncio.current_task():
            attempt.work.cancel()
        self._sender.release_stage(attempt)
        attempt.forget_future()

    def _lose_input(self, attempt: Attempt) -> None:
        """Have the input of an attempt made anew, unless it is on its worker already."""
        if attempt.future is None and isinstance(attempt.order, Assignment):
            self._end_attempt(attempt)
            self._pipeline.lost_input(attempt.order, self._now_s())
            self._go_on()

    def _withdraw(self, attempt: Attempt) -> None:
        """Have a worker not begin a task; one that has begun it tells when it is done."""

        async def ask() -> None:
            if await self._sender.withdraw(attempt) and attempt.order.attempt in self._attempts:
                self._drop(attempt)

        if attempt.future is None:
            self._drop(attempt)
        else:
            self._beside.do(ask())

    async def _bring_home(self, fetch: Fetch) -> None:
        """Bring an item's outputs from the worker that has them."""
        output = self._outputs.get(Task(len(self.chains.common.links) - 1, fetch.item))
        made = None
        if output is not None and output.attempt.member.address == fetch.worker:
            with contextlib.suppress(Exception):  # a worker that ends, whatever that raises: it is made anew
                made = await self._sender.made(output.attempt)
        if made is None:
            self._pipeline.undelivered(fetch, self._now_s())
        elif (entry := self._entries.get(fetch.item)) is not None:
            self.traffic.outputs_bytes += len(made)
            entry.output = made
            self._pipeline.delivered(fetch.item, self._now_s())
        self._go_on()

    def _blame(self, attempt: Attempt | None) -> None:
        """Count the death of a worker for the task that it ran: one that ends worker after worker is given up."""
        if attempt is not None and isinstance(attempt.order, Assignment):
            task, entry = attempt.order.task, self._entries.get(attempt.order.task.item)
            if entry is not None and entry.died(task.stage) >= _MOST_DEATHS:
                error = StageError(f"{_MOST_DEATHS} workers ended while they ran stage {task.stage + 1} on this input")
                self._pipeline.failed(attempt.order, self._now_s(), error)

    def _fail(self, error: SplitloadError) -> None:
        """End all items with an error."""
        if self._error is None:
            self._error = error
            if self._wake is not None:
                self._wake.cancel()
            entries, self._entries = self._entries, {}
            for entry in entries.values():
                entry.answer(None, error)

    async def _look_around(self) -> None:
        """Find, now and then, what nobody tells of."""
        while self._error is None:
            await asyncio.sleep(_LOOK_EVERY_S)
            for attempt in list(self._attempts.values()):
                status = None if attempt.future is None else attempt.future.status
                if status == "error":  # nothing that a task raises on purpose: it could not be begun
                    error = await attempt.future.exception()
                    self._refuse(attempt, f"{type(error).__name__}: {error}")
                elif status in ("cancelled", "lost"):
                    self._drop(attempt)
            if self.members.active() or not self._entries:
                self._alone_since_s = None
            elif self._alone_since_s is None:
                self._alone_since_s = self._now_s()
            elif self._now_s() - self._alone_since_s > LEFT_ALONE_S:
                reasons = "; ".join(f"'{name}': {why}" for name, why in self.notes.items())
                self._fail(ClusterError(f"no worker is left ({reasons})"))

    def _now_s(self) -> float:
        return time.perf_counter() - self.start_s
