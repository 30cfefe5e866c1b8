"""`splitload serve`: a device measures what is asked of it over HTTP. Starlette and uvicorn carry it.

A client places an order (its files by SHA-256, and a job), sends what is missing, and listens to what happens until
there is an answer; see `openapi` for every path. Nothing that is sent is executed: a job is a typed message, its files
are graphs, weights and arrays, and names never leave their folder.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from splitload.base.errors import OutputError, SplitloadError
from splitload.bundle.manifest import File
from splitload.deploy import openapi
from splitload.deploy.messages import order_of, pieces_of
from splitload.deploy.openapi import MOST_COUNT
from splitload.deploy.orders import ENDED, FullError, Orders, OtherOrderError, UnknownOrderError
from splitload.deploy.stage_cache import MissingFileError, StageCache

MOST_JSON_BYTES = 2 << 20
MOST_PIECE_BYTES = 2 << 20
BODY_S = 30.0  # a body that stops for so long is given up
BEAT_S = 5.0  # between lines of a stream in which nothing happens, so that a client knows that the device is there
WRONG_TOKENS, WRONG_S = 5, 60.0  # from one address, in a time; then it has to wait, with wrong ones
REQUESTS, REQUESTS_S = 2000, 10.0  # the same for requests with the right one
_MOST_ADDRESSES = 1024
_MOST_ERROR_CHARS = 500
_NUMBER = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Changes:
    """Tells coroutines that something happened, from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()

    def begin(self) -> None:
        """Belong to the loop that runs now."""
        self._loop = asyncio.get_running_loop()

    def tell(self) -> None:
        """Wake all who wait."""
        with suppress(RuntimeError):  # it is closed
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._wake)

    async def wait(self, seconds: float) -> None:
        """Wait until something happens, or so many seconds have passed."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)

    def _wake(self) -> None:
        self._event.set()
        self._event = asyncio.Event()


class Limit:
    """Counts what an address does, and says how long it has to wait.

    Args:
        most: How often it may be done in a time.
        window_s: That time.
    """

    def __init__(self, most: int, window_s: float) -> None:
        self._most, self._window_s = most, window_s
        self._counts: dict[str, tuple[float, int]] = {}

    def wait_s(self, address: str) -> float:
        """Return how many seconds it has to wait; 0 where it need not."""
        since_s, count = self._counts.get(address, (0.0, 0))
        left_s = since_s + self._window_s - time.monotonic()
        return left_s if count >= self._most and left_s > 0 else 0.0

    def count(self, address: str) -> None:
        """Count that it was done once more."""
        now_s = time.monotonic()
        since_s, count = self._counts.pop(address, (now_s, 0))
        self._counts[address] = (now_s, 1) if now_s - since_s > self._window_s else (since_s, count + 1)
        while len(self._counts) > _MOST_ADDRESSES:
            self._counts.pop(next(iter(self._counts)))


class Service:
    """The service of one device, as an application of ASGI.

    Args:
        describe: Returns what the device is, and how it is now, as JSON values; it may take a moment.
        cache: Where files are kept.
        make_orders: Returns what takes orders, given what is to be called when something happens to one.
        token: What a client has to show.
    """

    def __init__(
        self,
        describe: Callable[[], dict[str, Any]],
        cache: StageCache,
        make_orders: Callable[[Callable[[], None]], Orders],
        token: str,
    ) -> None:
        self._describe, self._cache, self._token = describe, cache, token
        self._changes = Changes()
        self._orders = make_orders(self._changes.tell)
        self._wrong, self._requests = Limit(WRONG_TOKENS, WRONG_S), Limit(REQUESTS, REQUESTS_S)
        routes = [
            ("/v1/device", "GET", self._device),
            ("/v1/orders/{number}", "PUT", self._place),
            ("/v1/orders/{number}", "DELETE", self._end),
            ("/v1/orders/{number}/events", "GET", self._events),
            ("/v1/orders/{number}/files/{name:path}", "GET", self._made),
            ("/v1/files/{sha256}", "PUT", self._piece),
            ("/v1/files/{sha256}/copies", "POST", self._copies),
            ("/openapi.json", "GET", self._openapi),
        ]
        self.application = Starlette(
            routes=[Route(path, self._guarded(answer), methods=[method]) for path, method, answer in routes],
            exception_handlers={HTTPException: _refused, Exception: _broken},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._changes.begin()
        try:
            yield
        finally:
            await run_in_threadpool(self._orders.close)
            self._cache.close()

    def _guarded(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint that is answered to who has the token, and whose errors are one line."""

        async def guarded(request: Request) -> Response:
            address = request.client.host if request.client is not None else ""
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            right = scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._token.encode())
            limit = self._requests if right else self._wrong  # others behind one address do not shut out who is right
            wait_s = limit.wait_s(address)
            if wait_s > 0:
                what = "requests" if right else "wrong tokens"
                raise HTTPException(429, f"too many {what}", {"Retry-After": str(int(wait_s) + 1)})
            limit.count(address)
            if not right:
                raise HTTPException(401, "the token is missing or wrong; it is shown where 'splitload serve' runs")
            try:
                return await answer(request)
            except SplitloadError as error:
                text = " ".join(str(error).split())[:_MOST_ERROR_CHARS]
                raise HTTPException(_code(error), text.encode("utf-8", "replace").decode()) from error
            except OSError as error:  # of the disk, above all
                raise HTTPException(507, f"the disk refuses it: {error.strerror or type(error).__name__}") from error
            except ClientDisconnect:
                return Response(status_code=400)

        return guarded

    async def _openapi(self, _: Request) -> Response:
        return JSONResponse(openapi.description())

    async def _device(self, _: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._describe))

    async def _place(self, request: Request) -> Response:
        number = _path_of(request, "number", _NUMBER)
        wanted = await run_in_threadpool(order_of, await _body_of(request, MOST_JSON_BYTES))
        order, missing = await run_in_threadpool(self._orders.place, number, wanted)
        return JSONResponse({"state": order.state, "ahead": self._orders.ahead(order), "missing": missing})

    async def _end(self, request: Request) -> Response:
        await run_in_threadpool(self._orders.end, _path_of(request, "number", _NUMBER))
        return JSONResponse({})

    async def _events(self, request: Request) -> Response:
        number, seen = _path_of(request, "number", _NUMBER), _count_of(request, "seen", 0)
        self._orders.find(number)

        async def lines() -> AsyncIterator[bytes]:
            at = seen
            while True:
                try:
                    order = self._orders.find(number)
                except UnknownOrderError:
                    return
                events = order.events[at:]
                for event in events:
                    yield _line(event)
                at += len(events)
                if order.state in ENDED and at >= len(order.events):
                    return
                if not events:
                    await self._changes.wait(BEAT_S)
                    if at >= len(order.events):
                        yield _line({"event": "beat", "ahead": self._orders.ahead(order)})

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def _made(self, request: Request) -> Response:
        number = _path_of(request, "number", _NUMBER)
        place = self._orders.place_of(number, request.path_params["name"])
        try:
            return FileResponse(place, stat_result=place.stat())
        except FileNotFoundError as error:  # the order has just been ended
            raise UnknownOrderError(f"there is no order {number} here any more") from error

    async def _piece(self, request: Request) -> Response:
        file, start = self._waited_for(request), _count_of(request, "start")
        piece = bytearray()
        try:
            await _body_of(request, MOST_PIECE_BYTES, piece)
        finally:  # what came before a link was cut is not sent again
            there = await run_in_threadpool(self._cache.write, file, start, bytes(piece[:MOST_PIECE_BYTES]))
        return JSONResponse({"there": there})

    async def _copies(self, request: Request) -> Response:
        file, start = self._waited_for(request), _count_of(request, "start")
        pieces = await run_in_threadpool(pieces_of, await _body_of(request, MOST_JSON_BYTES))
        return JSONResponse({"there": await run_in_threadpool(self._cache.copy, file, start, pieces)})

    def _waited_for(self, request: Request) -> File:
        file = self._orders.file_of(_path_of(request, "sha256", _SHA256))
        if file is None:
            raise HTTPException(404, "no order waits for this file; place one first")
        return file


def _code(error: SplitloadError) -> int:
    """Return the status of an answer that refuses something."""
    if isinstance(error, UnknownOrderError):
        return 404
    if isinstance(error, OtherOrderError | MissingFileError):
        return 409
    if isinstance(error, FullError):
        return 429
    return 507 if isinstance(error, OutputError) else 400


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def _broken(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"the service failed: {type(error).__name__}"}, 500)


def _path_of(request: Request, name: str, form: re.Pattern[str]) -> str:
    word = str(request.path_params[name])
    if not form.fullmatch(word):
        raise HTTPException(404, f"there is no {name} '{word:.80}'")
    return word


def _count_of(request: Request, name: str, default: int | None = None) -> int:
    word = request.query_params.get(name)
    if word is None and default is not None:
        return default
    if word is None or not (word.isascii() and word.isdecimal() and len(word) < 17 and int(word) <= MOST_COUNT):
        raise HTTPException(400, f"{name} must be a count of at most {MOST_COUNT}")
    return int(word)


async def _body_of(request: Request, most: int, body: bytearray | None = None) -> bytes:
    """Return the body of a request, which is read into `body`; one that is too large or does not come is refused."""
    body = bytearray() if body is None else body
    stream = request.stream()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream, None), BODY_S)
        except TimeoutError as error:
            raise HTTPException(408, f"nothing came for {BODY_S:g} s") from error
        if chunk is None:
            return bytes(body)
        body += chunk
        if len(body) > most:
            raise HTTPException(413, f"a body has at most {most} bytes")


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"
