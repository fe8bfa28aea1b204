"""The models that are served: one for good, or several, loaded when they are asked for and unloaded when not."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from anyio.to_thread import run_sync

from ..formats.errors import EngineError
from .errors import ApiError
from .service import Service

Load = Callable[[str, Path], Service]


@dataclass(frozen=True)
class Shelf:
    """What may be loaded: paths by name, the name that is meant where none is given, how many fit, when they go."""

    paths: Mapping[str, Path]
    default: str
    most: int = 1
    idle_seconds: float = float("inf")


class Models:
    """Loaded models by name; used in the event loop alone, but for loading and unloading."""

    def __init__(self, shelf: Shelf, load: Load, loaded: Service | None = None) -> None:
        """`load` makes a Service of a name and a path; `loaded` is one that is there already."""
        self.shelf = shelf
        self._load = load
        self._loaded: dict[str, Service] = {} if loaded is None else {loaded.name: loaded}
        self._lock = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    def single(cls, service: Service) -> "Models":
        """Return one model, whatever clients call it."""
        shelf = Shelf({service.name: service.model.path}, service.name)
        return cls(shelf, lambda _, __: service, service)

    @property
    def loaded(self) -> dict[str, Service]:
        """The models that are loaded."""
        return self._loaded

    @property
    def hidden(self) -> tuple[tuple[str, str], ...]:
        """What no client may read of this machine, and what stands for it."""
        files = [(str(path), name) for name, path in self.shelf.paths.items()]
        return (*files, *((str(path.parent), "") for path in self.shelf.paths.values()))

    @asynccontextmanager
    async def leased(self, name: str | None) -> AsyncIterator[Service]:
        """Give a model, loaded if need be, that is not unloaded within the block. Raises ApiError and EngineError."""
        service = await self._found(name)
        try:
            yield service
        finally:
            service.pins -= 1
            service.last_used = time.monotonic()

    async def _found(self, name: str | None) -> Service:
        known = self._known(name)
        service = self._loaded.get(known)
        if service is None:
            async with self._lock:
                service = self._loaded.get(known) or await self._made(known)
        service.pins += 1
        return service

    def _known(self, name: str | None) -> str:
        paths = self.shelf.paths
        if name is not None and name in paths:
            return name
        if name is None or len(paths) == 1:
            return self.shelf.default
        raise ApiError(404, f"there is no model {name[:200]!r}; /v1/models lists them", "model", "model_not_found")

    async def _made(self, name: str) -> Service:
        while len(self._loaded) >= self.shelf.most:
            await self._make_room()
        while True:
            try:
                service = await run_sync(self._load, name, self.shelf.paths[name])
                break
            except EngineError:
                if not self._loaded:
                    raise
                await self._make_room()
        self._loaded[name] = service
        if self._watch is None and self.shelf.idle_seconds != float("inf"):
            self._watch = asyncio.ensure_future(self._unload_idle())
        return service

    async def _make_room(self) -> None:
        idle = [name for name, service in self._loaded.items() if not service.pins]
        if not idle:
            raise ApiError(503, "all models that fit are answering; try again later", "model", "busy")
        oldest = min(idle, key=lambda name: self._loaded[name].last_used)
        await run_sync(self._loaded.pop(oldest).close)

    async def _unload_idle(self) -> None:
        while True:
            await asyncio.sleep(min(self.shelf.idle_seconds, 5.0))
            async with self._lock:
                before = time.monotonic() - self.shelf.idle_seconds
                idle = [name for name, one in self._loaded.items() if not one.pins and one.last_used < before]
                for name in idle:
                    await run_sync(self._loaded.pop(name).close)

    def close(self, seconds: float) -> None:
        """Let answers end for so long, then free all models."""
        end = time.monotonic() + seconds
        for service in self._loaded.values():
            service.close(max(0.0, end - time.monotonic()))
