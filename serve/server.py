"""The server's process: a socket, one line when it answers, and an end that lets answers end."""

import asyncio
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from ..formats.errors import MoeGgufError
from ..jobs.listener import SILENT, Listener
from ..runner.interrupt import SIGNALS
from .application import Application
from .connections import Protocol, allow_many_files, let_stalled_go
from .folders import folder_routes, open_paths
from .guard import Access, Guard
from .models import Models, Shelf
from .pages import page_routes
from .service import ModelOptions, Service, opened

# Python looks this often, in seconds, whether another thread wants to run: the engine's must not wait long.
SWITCH_SECONDS = 0.0005


@dataclass(frozen=True)
class Request:
    """What is served, a model or a shelf of them, and to whom; `page` is a folder with another page than ours."""

    model: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    access: Access = field(default_factory=Access)
    shelf: Shelf | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    largest_body: int = 32 * 1024 * 1024
    stop_seconds: float = 30.0
    page: Path | None = None


class ServerError(MoeGgufError):
    """The server cannot begin."""


def run(request: Request, listener: Listener = SILENT, on_ready: Callable[[str], object] | None = None) -> None:
    """Load the model and answer until a signal comes; `on_ready` hears the address. Raises MoeGgufError."""
    pages, allowed = page_routes(), request.access
    if request.page is not None:
        pages, allowed = folder_routes(request.page), replace(allowed, open_paths=open_paths(request.page))
    sockets = bound(request.host, request.port)
    try:
        models = shelved(request, listener)
        try:
            sys.setswitchinterval(SWITCH_SECONDS)
            allow_many_files()
            application = Application(models, request.largest_body).asgi(pages)
            serve(Guard(application, allowed), sockets, request.stop_seconds, on_ready)
        finally:
            models.close(request.stop_seconds)
    finally:
        sockets.close()


def shelved(request: Request, listener: Listener) -> Models:
    """Return the models of a request: its one, loaded now, or a shelf of them. Raises MoeGgufError."""

    def load(name: str, path: Path) -> Service:
        listener.say(f"loading {name}")
        return opened(path, request.options, name, listener)

    if request.shelf is not None:
        return Models(request.shelf, load)
    assert request.model is not None
    return Models.single(opened(request.model, request.options, listener=listener))


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises ServerError when the address is taken or is not here."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        let_stalled_go(found)
    except (OSError, OverflowError) as error:
        found.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ServerError(f"{host}:{port}: {reason}; choose another --host or --port") from None
    return found


class Server(uvicorn.Server):
    """uvicorn's server, which a signal stops and does not kill: to stop is what it was told."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let the first signal end the server when answers have ended, the next one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(application: ASGIApp, found: socket.socket, seconds: float, on_ready: Callable[[str], object] | None) -> None:
    """Answer at a socket until a signal comes; then answers have `seconds` to end."""
    config = uvicorn.Config(
        application,
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        backlog=2048,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, int(seconds)),
    )
    server = Server(config)

    async def answer() -> None:
        telling = asyncio.ensure_future(tell())
        await server.serve(sockets=[found])
        telling.cancel()

    async def tell() -> None:
        while not server.started:
            await asyncio.sleep(0.01)
        if on_ready:
            on_ready(address_of(found))

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(answer())


def address_of(found: socket.socket) -> str:
    """Return where a socket is reached."""
    host, port = found.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
