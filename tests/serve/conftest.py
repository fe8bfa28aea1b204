"""A server over the tiny mixture, in a thread of the test's process, at a port of its own."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from moe_gguf.jobs.loading import LoadRequest
from moe_gguf.serve.application import Application
from moe_gguf.serve.connections import Protocol
from moe_gguf.serve.models import Models
from moe_gguf.serve.scheduler import Limits
from moe_gguf.serve.server import bound
from moe_gguf.serve.service import ModelOptions, Service, opened

# Batches of 1 to n_ubatch tokens of this model are computed alike, so that answers can be compared to the letter.
LOAD = LoadRequest(n_ctx=2048, n_batch=64, n_ubatch=64, n_threads=1, n_gpu_layers=0, flash_attn="off", repack=False)


def options(**settings: Any) -> ModelOptions:
    """Return how the tests' model is served."""
    limits = settings.pop("limits", Limits(4, 16))
    return ModelOptions(LOAD, limits=limits, n_predict=16, **settings)


@contextmanager
def serving(models: Models, largest_body: int = 1_000_000, protocol: type[Protocol] = Protocol) -> Iterator[str]:
    """Serve at a free port of the loopback; give the address."""
    found = bound("127.0.0.1", 0)
    config = uvicorn.Config(
        Application(models, largest_body).asgi(), http=protocol, ws="none", log_config=None, access_log=False,
        lifespan="off", timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([found])), daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{found.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        found.close()


def wait_until(true: Callable[[], object]) -> None:
    """Wait until something holds; the test's own limit ends it otherwise."""
    pause = threading.Event()
    while not true():
        pause.wait(0.005)


@pytest.fixture(scope="session")
def service(tiny_path: Path) -> Iterator[Service]:
    """The tiny mixture, at work."""
    found = opened(tiny_path, options(), "tiny")
    yield found
    found.close()


@pytest.fixture(scope="session")
def address(service: Service) -> Iterator[str]:
    """Where it is served."""
    with serving(Models.single(service)) as found:
        yield found


@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    """A plain HTTP client."""
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client
