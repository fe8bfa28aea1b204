"""Serving this machine's devices to another one through llama.cpp's RPC backend."""

from dataclasses import dataclass
from pathlib import Path

from .listener import SILENT, Listener


@dataclass(frozen=True)
class Request:
    """Where to listen and what to serve: `devices` None are the GPUs, else the CPU; `cache` keeps weights there."""

    host: str = "127.0.0.1"
    port: int = 50052
    n_threads: int | None = None
    devices: tuple[str, ...] | None = None
    cache: Path | None = None


def run(request: Request, listener: Listener = SILENT) -> None:
    """Serve until the process is interrupted. Raises EngineError when it cannot listen or a device is not there."""
    from ..runner.placing.devices import list_devices
    from ..runner.placing.rpc import endpoint_text, is_loopback, serve, served_devices
    from ..runner.threads import best_thread_count

    names = list(request.devices) if request.devices else served_devices(list_devices())
    where = endpoint_text(request.host, request.port)
    if not is_loopback(request.host):
        listener.warn(
            f"{where} is open to everyone who can reach it, and the protocol has no authentication and no "
            "encryption; use it in a network that you trust only"
        )
    listener.say(f"serving {', '.join(names)}; use it with --rpc {where}, end it with Ctrl-C")
    if request.cache:
        request.cache.mkdir(parents=True, exist_ok=True)
    cache = str(request.cache) if request.cache else None
    serve(request.host, request.port, request.n_threads or best_thread_count(), names, cache)
