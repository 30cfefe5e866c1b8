"""Work in an event loop that nobody waits for; what goes wrong with a link there shows in a worker that leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class Beside:
    """Keeps tasks until they are done: the event loop itself does not."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin work; an `OSError` of it is nobody's concern."""

        async def done() -> None:
            with contextlib.suppress(OSError):
                await work

        task = asyncio.ensure_future(done())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, within_s: float) -> None:
        """Wait until everything is done, and cancel what is not in time."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=within_s)
        await self.end()

    async def end(self, *others: asyncio.Task[None]) -> None:
        """Cancel everything, and what else is given, and wait until it has ended."""
        tasks = [*self._tasks, *others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def begun(call: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """Begin a call whose outcome may come to be of no interest: its error is then nobody's."""
    task = asyncio.ensure_future(call)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task
