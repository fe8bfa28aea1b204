"""The page in Chromium, against a server of a tiny mixture; left out, and said so, where there is no Chromium."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ...runner.tiny_gguf import Fields, Tensors, write_tiny
from .screen import Screen

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MISSING = [
    what
    for what, there in (
        ("a Chromium (apt-get install chromium)", CHROMIUM),
        (
            "playwright and axe-playwright-python (pip install '.[dev]')",
            find_spec("playwright") and find_spec("axe_playwright_python"),
        ),
    )
    if not there
]
collect_ignore_glob = ["test_*.py"] if MISSING else []
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 10_000  # milliseconds
START = "listening on "


def pytest_terminal_summary(terminalreporter) -> None:
    """Say what was left out."""
    if MISSING:
        terminalreporter.write_line(f"left out: tests/serve/page, which need {' and '.join(MISSING)}")


class Server:
    """`moe-gguf serve` in a process of its own, which can be ended and started again at the same address."""

    def __init__(self, *words: str | Path) -> None:
        self._words, self._process, self.port = words, None, 0
        self.start()

    def start(self) -> None:
        """Start it; at the port it had before, if it ran before."""
        program = "import sys; from moe_gguf.cli import main; main()"
        words = (sys.executable, "-c", program, "serve", *map(str, self._words), "--port", str(self.port))
        self._process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr
        told = []
        for line in self._process.stderr:
            told.append(line)
            if START in line:
                self.port = int(line.split(START)[1].strip().rstrip("/").rsplit(":", 1)[1])
                return
        raise AssertionError("".join(told))

    def stop(self) -> None:
        """End it at once, and wait until it is gone."""
        if self._process:
            self._process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
            self._process.communicate()
            self._process = None

    @property
    def url(self) -> str:
        """Return the page's address."""
        return f"http://127.0.0.1:{self.port}/"


def speak_in_letters(fields: Fields, tensors: Tensors) -> None:
    """Let a random model say letters and spaces and go on for long, rather than bytes that are no characters."""
    fields |= {"llama.context_length": 131072, "general.name": "Tiny"}
    n_letters = len(fields["tokenizer.ggml.tokens"]) - 5 - 256
    tensors["output.weight"][:-n_letters] = 0
    tensors["output.weight"][-n_letters:] *= 6


@pytest.fixture(scope="package")
def talker_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of 4 experts with random weights that talks in letters."""
    return write_tiny(tmp_path_factory.mktemp("page") / "Tiny.gguf", speak_in_letters)


@pytest.fixture(scope="package")
def server(talker_path: Path) -> Iterator[Server]:
    """A server that most tests share."""
    running = Server(talker_path, "-c", "131072", "--parallel", "4", "-t", "1")
    yield running
    running.stop()


@pytest.fixture(scope="package")
def browser() -> "Iterator[Browser]":
    """Chromium. It ends after the last test here: a loop of asyncio runs in this thread until then."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET), env={**os.environ})
        yield chromium
        chromium.close()


@pytest.fixture
def screen(browser: "Browser", server: Server) -> Iterator[Screen]:
    """The page in a browser that has kept nothing yet. What the console complains of fails the test."""
    with Screen.opened(browser, server.url) as opened:
        yield opened
