"""Connections whose clients send a request in time: who has no token does not keep a place for long by sending none.

uvicorn's own limit is on idle connections after an answer, and begins anew with every byte that comes.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 30.0  # from the beginning of a connection, or from an answer, until the head of a request is there


class PromptProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn, with a deadline for the head of each request."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(transport)
        self._watch()

    def handle_events(self) -> None:
        """Take what came."""
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        """End a request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection."""
        self._end()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Have a deadline while no request is answered; bytes that come do not put it off."""
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            self._end()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_S, self.transport.abort)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
