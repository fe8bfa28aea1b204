"""Connections: how many there may be, and how long a client may take to send what it began, or to take what it asked.

Bodies have limits of their own (bodies.py), and so have connections that wait for another request (uvicorn's).
"""

import asyncio
import socket
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 30.0  # for the head of a request, from the connection or the first byte on
LARGEST_HEAD = 64 * 1024  # bytes; the parser itself has no limit
STALL_SECONDS = 60  # how long nothing of an answer may arrive at a client before it counts as gone
MOST_FILES = 65_536


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which cuts clients that do not send the head of a request."""

    seconds = HEAD_SECONDS
    _cut: asyncio.TimerHandle | None = None
    _is_in_head = False
    _n_head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._limit()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._unlimit()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        super().data_received(data)
        if self._is_in_head:
            self._n_head += len(data)
            if self._n_head > LARGEST_HEAD:
                self.transport.abort()
        elif self.cycle is not None and self.cycle.response_complete:  # the rest of a body that nobody wants
            self._limit()

    def on_message_begin(self) -> None:
        """Begin a head; see httptools."""
        super().on_message_begin()
        self._is_in_head, self._n_head = True, 0
        self._limit()

    def on_headers_complete(self) -> None:
        """End a head; see httptools."""
        self._is_in_head = False
        self._unlimit()
        super().on_headers_complete()

    def _limit(self) -> None:
        if self._cut is None:
            self._cut = self.loop.call_later(self.seconds, self.transport.abort)

    def _unlimit(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None


def let_stalled_go(listening: socket.socket) -> None:
    """Let the system drop connections whose client takes nothing any more; those accepted inherit it (Linux)."""
    option: Any = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None:
        listening.setsockopt(socket.IPPROTO_TCP, option, STALL_SECONDS * 1000)


def allow_many_files() -> None:
    """Let this process have as many connections open as the system lets it; programs begin with 1,024 as a rule."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
