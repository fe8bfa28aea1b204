"""Answers over HTTP: as server-sent events while they are made, or whole; a client that leaves ends them at once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..formats.errors import MoeGgufError
from .errors import ApiError, api_error

HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
DONE = b"data: [DONE]\n\n"
PING = b":\n\n"
PING_SECONDS = 30


class Left(Exception):
    """The client went away."""


def data(value: Any) -> bytes:
    """Return an event of a value."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def failure(error: MoeGgufError, hidden: tuple[tuple[str, str], ...]) -> bytes:
    """Return an event of an error in OpenAI's form; `hidden` as in `api_error`."""
    return data(api_error(error, hidden).as_json())


def named(name: str, value: Any) -> bytes:
    """Return an event with a name, as Anthropic's API has them."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"


class EventStream(Response):
    """Events as they come. `close` is called in the end, however it comes; `failed` makes an event of an error.

    A comment goes out whenever there was nothing to send for `ping_seconds`, so that nobody on the way takes the
    connection for dead; -1 is never.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        close: Callable[[], None],
        failed: Callable[[MoeGgufError], bytes],
        ping_seconds: int | None = None,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._close = close
        self._failed = failed
        self._ping_seconds = PING_SECONDS if ping_seconds is None else ping_seconds
        self._started = False
        self._n_sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; see Starlette."""
        pinging = asyncio.ensure_future(self._ping(send)) if self._ping_seconds > 0 else None
        try:
            await while_there(receive, self._send_all(send))
        except Left:
            pass
        finally:
            if pinging:
                pinging.cancel()
            self._close()

    async def _send_all(self, send: Send) -> None:
        try:
            async for event in self._events:
                await self._send(send, event)
        except MoeGgufError as error:
            if not self._started:
                raise
            await self._send(send, self._failed(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, event: bytes) -> None:
        self._n_sent += 1
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": event, "more_body": True})

    async def _ping(self, send: Send) -> None:
        while True:
            before = self._n_sent
            await asyncio.sleep(self._ping_seconds)
            if self._n_sent == before:
                await self._send(send, PING)


class WholeAnswer(Response):
    """One JSON document, once it is there."""

    def __init__(self, make: Callable[[], Awaitable[Any]], close: Callable[[], None]) -> None:
        super().__init__()
        self._make = make
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait for the document and send it; see Starlette."""
        try:
            made = await while_there(receive, self._make())
            await json_response(made)(scope, receive, send)
        except Left:
            pass
        finally:
            self._close()


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON document as a response."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def refusal(error: ApiError) -> Response:
    """Return a refusal as a response."""
    return JSONResponse(error.as_json(), error.status, error.headers)


async def while_there(receive: Receive, work: Awaitable[Any]) -> Any:
    """Return what work returns. Raises Left, and stops the work, when the client goes away before."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_leaves(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Left
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
