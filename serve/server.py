"""The server's process: a socket, one line when it answers, and an end that lets answers end."""

import asyncio
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from ..formats.errors import MoeGgufError
from ..jobs.listener import SILENT, Listener
from .application import Application
from .pages import page_routes
from .service import ModelOptions, opened

# Python looks this often, in seconds, whether another thread wants to run: the engine's must not wait long.
SWITCH_SECONDS = 0.0005


@dataclass(frozen=True)
class Request:
    """What is served, and to whom."""

    model: Path
    host: str = "127.0.0.1"
    port: int = 8080
    options: ModelOptions = field(default_factory=ModelOptions)
    largest_body: int = 32 * 1024 * 1024
    stop_seconds: float = 30.0


class ServerError(MoeGgufError):
    """The server cannot begin."""


def run(request: Request, listener: Listener = SILENT, on_ready: Callable[[str], object] | None = None) -> None:
    """Load the model and answer until a signal comes; `on_ready` hears the address. Raises MoeGgufError."""
    sockets = bound(request.host, request.port)
    try:
        service = opened(request.model, request.options, listener=listener)
        try:
            sys.setswitchinterval(SWITCH_SECONDS)
            application = Application(service, request.largest_body).asgi(page_routes())
            asyncio.run(serve(application, sockets, request, on_ready))
        finally:
            service.close(request.stop_seconds)
    finally:
        sockets.close()


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises ServerError when the address is taken or is not here."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ServerError(f"{host}:{port}: {reason}; choose another --host or --port") from None
    return found


async def serve(
    application: object, found: socket.socket, request: Request, on_ready: Callable[[str], object] | None
) -> None:
    """Answer at a socket until a signal comes."""
    config = uvicorn.Config(
        application,  # pyright: ignore[reportArgumentType]
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="off",
        backlog=2048,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, int(request.stop_seconds)),
    )
    server = uvicorn.Server(config)

    async def tell() -> None:
        while not server.started:
            await asyncio.sleep(0.01)
        if on_ready:
            host, port = found.getsockname()[:2]
            on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    telling = asyncio.ensure_future(tell())
    await server.serve(sockets=[found])
    telling.cancel()
