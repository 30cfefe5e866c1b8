"""How stages get to workers: each file once, from the client or from a worker that has it, in pieces that resume."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from splitload.base.errors import StageError
from splitload.bundle.manifest import File
from splitload.crowd.beside import Beside, begun
from splitload.crowd.members import Member
from splitload.crowd.orders import PIECE_BYTES, StageOrder
from splitload.deploy.stage_cache import MissingFileError

_TRIES = 5
_AT_ONCE = 2  # pieces of a file that are on their way to a worker
_PAUSE_S = 0.2  # after a connection broke; a worker that is gone has its transfers cancelled
_END_S = 2.0  # a worker that is silent does not hold up who ends
_CLIENT = ""


class Supply:
    """Sends stages, in the event loop of a client.

    Attributes:
        from_client_bytes: What the client has sent.
        between_bytes: What workers have sent each other.

    Args:
        client: A `distributed.Client`.
        folder: The bundle.
        present: Returns the workers that may be asked for a file.
        crowd: Name of the crowd.
    """

    def __init__(self, client: Any, folder: Path, present: Callable[[], list[Member]], crowd: str) -> None:
        self.from_client_bytes = 0
        self.between_bytes = 0
        self._client, self._folder, self._present, self._crowd = client, folder, present, crowd
        self._holders: dict[str, set[str]] = {}  # addresses of the workers that have a file, by its SHA-256
        self._sending: Counter[str] = Counter()  # transfers under way, by address
        self._turns: dict[str, asyncio.Lock] = {}
        self._fetches: dict[str, set[asyncio.Task[int]]] = {}  # under way, by the worker that is asked
        self._releases = Beside()

    async def bring(self, member: Member, stage: StageOrder) -> float | None:
        """Have a worker take a stage into use, and send it what it lacks of it; `release` ends the use.

        Whoever cancels this, or sees it fail, has no use to end.

        Returns:
            Seconds that its files travelled; None where they were there.

        Raises:
            SplitloadError: If the worker cannot keep it.
            OSError: If the connection breaks again and again.
        """
        turn = self._turns.setdefault(member.address, asyncio.Lock())
        async with turn:  # two stages at a time would both come late
            files = [[*file] for file in stage.files]
            call = self._client.rpc(member.address).splitload_request(crowd=self._crowd, key=stage.key, files=files)
            request: asyncio.Task[dict[str, int]] = asyncio.ensure_future(call)
            try:
                missing = await asyncio.shield(request)  # one that was sent may be carried out, whoever waits for it
                start_s = time.perf_counter()
                for file in dict.fromkeys(stage.files):
                    if file.sha256 in missing:
                        await self._send(member, file, missing[file.sha256])
                    self._holders.setdefault(file.sha256, set()).add(member.address)
            except BaseException:  # cancelled, above all
                self._releases.do(self._end_use(member, stage, request))
                raise
            seconds = time.perf_counter() - start_s
            if not missing:
                return None
            member.note_link(sum(file.bytes - missing.get(file.sha256, file.bytes) for file in stage.files), seconds)
            return seconds

    def release(self, member: Member, stage: StageOrder) -> None:
        """Begin to end a use of a stage on a worker."""
        self._releases.do(self._end_use(member, stage))

    async def end(self) -> None:
        """Wait until the uses have ended that are about to, but not long."""
        await self._releases.finish(_END_S)

    def forget(self, address: str, stage: StageOrder | None = None) -> None:
        """Ask a worker no more for a stage, or for any; who waits for it then goes on from another."""
        for fetch in self._fetches.get(address, ()) if stage is None else ():
            fetch.cancel()
        for file in self._holders if stage is None else [file.sha256 for file in stage.files]:
            self._holders.get(file, set()).discard(address)

    async def _end_use(
        self, member: Member, stage: StageOrder, request: asyncio.Task[dict[str, int]] | None = None
    ) -> None:
        """End a use of a stage on a worker, once the request has begun it, if that is still under way."""
        if request is not None:
            try:
                await request
            except Exception:  # the worker has refused, or is gone: there is no use
                return
        await self._client.rpc(member.address).splitload_release(crowd=self._crowd, key=stage.key)

    async def _send(self, member: Member, file: File, there: int) -> None:
        """Have a worker get the rest of a file.

        Args:
            member: The worker.
            file: What it lacks.
            there: How many bytes of it are there.
        """
        for attempt in range(_TRIES):
            source = self._source(member, file) if attempt < _TRIES - 1 else _CLIENT
            self._sending[source] += 1
            before = there
            try:
                if source == _CLIENT:
                    there = await self._push(member, file, there)
                else:
                    there = await self._fetch(member, file, there, source)
            except (OSError, StageError) as error:
                if source != _CLIENT:
                    self.forget(source)
                elif attempt == _TRIES - 1:
                    if isinstance(error, MissingFileError):
                        path = self._folder / file.name
                        raise StageError(f"'{path}' arrives damaged; was it changed since the crowd began?") from error
                    raise
                await asyncio.sleep(_PAUSE_S)
                there = await self._so_far(member, file, error)
            finally:
                self._sending[source] -= 1
                if source == _CLIENT:
                    self.from_client_bytes += max(0, there - before)
                else:
                    self.between_bytes += max(0, there - before)
            if there == file.bytes:
                return
        raise StageError(f"'{file.name}' does not get to the worker '{member.name}': {there} of {file.bytes} bytes did")

    async def _fetch(self, member: Member, file: File, there: int, source: str) -> int:
        """Have a worker fetch the rest of a file from another one; return how many bytes are there then.

        Raises:
            OSError: If either is lost meanwhile.
        """
        call = self._client.rpc(member.address).splitload_fetch(file=[*file], start=there, source=source)
        fetch: asyncio.Task[int] = asyncio.ensure_future(call)
        fetches = self._fetches.setdefault(source, set())
        fetches.add(fetch)
        try:
            return await fetch
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():  # it is this transfer that nobody needs
                fetch.cancel()
                raise
            raise ConnectionError(f"the worker at {source} is gone") from None
        finally:
            fetches.discard(fetch)

    async def _push(self, member: Member, file: File, there: int) -> int:
        """Send the rest of a file from here; return how many bytes are there then.

        A piece travels while the worker writes the one before, so that the link has no pause.
        """
        worker = self._client.rpc(member.address)
        sent = there
        pieces: deque[tuple[int, asyncio.Task[int]]] = deque()  # under way, and where each ends
        try:
            while there < file.bytes:
                while sent < file.bytes and len(pieces) < _AT_ONCE:
                    piece = self._piece(file, sent)
                    call = worker.splitload_write(file=[*file], start=sent, piece=piece)
                    sent += len(piece)
                    pieces.append((sent, begun(call)))
                end, under_way = pieces.popleft()
                there = await under_way
                if there < end:  # another one writes it, or what was there is gone
                    break
            return there
        finally:
            for _, under_way in pieces:
                under_way.cancel()

    def _piece(self, file: File, start: int) -> bytes:
        """Return a piece of a file of the bundle.

        Raises:
            StageError: If it is not there any more.
        """
        path = self._folder / file.name
        try:
            with path.open("rb") as opened:
                opened.seek(start)
                piece = opened.read(PIECE_BYTES)
        except OSError as error:
            raise StageError(f"'{path}' was there before, and cannot be read ({error.strerror})") from error
        if not piece:
            raise StageError(f"'{path}' has become shorter; copy the bundle again")
        return piece

    async def _so_far(self, member: Member, file: File, error: Exception) -> int:
        """Return how many bytes of a file are there, after a transfer of it failed."""
        try:
            return int(await self._client.rpc(member.address).splitload_write(file=[*file], start=0, piece=b""))
        except OSError:
            raise error from None

    def _source(self, member: Member, file: File) -> str:
        """Return who sends a file: who sends least now, and rather a worker than the client, that feeds them all."""
        holders = self._holders.get(file.sha256, set())
        others = [each.address for each in self._present() if each.address in holders and each is not member]
        return min([*others, _CLIENT], key=lambda source: (self._sending[source], source == _CLIENT))
