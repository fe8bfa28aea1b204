"""`moe-gguf chat` through a pipe, and at a terminal of its own."""

import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from io import StringIO
from pathlib import Path

import pytest

from ..command import Outcome, moe_gguf
from ..runner.tiny_gguf import write_tiny

# prompt_toolkit switches bracketed paste on when it begins to read a line
READY = b"\x1b[?2004h"
QUICK = ("-t", "1", "-c", "512", "--no-fit", "-n", "6", "-s", "1", "--ignore-eos")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def chat(model: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that pipes lines into a chat."""

    def run(*lines: str, options: tuple[str, ...] = ()) -> Outcome:
        monkeypatch.setattr(sys, "stdin", StringIO("".join(f"{line}\n" for line in lines)))
        return moe_gguf("chat", model, *QUICK, *options)

    return run


def test_each_line_is_a_message(chat) -> None:
    outcome = chat("the cat", "", "an ant")
    assert outcome.status == 0
    assert outcome.stderr.count("[6 tokens, ") == 2 and "reused" in outcome.stderr
    assert outcome.stdout.endswith("\n") and len(outcome.stdout) > 4
    assert "Tiny, 1 threads, context of 512 tokens" in outcome.stderr


def said(path: Path) -> list[str]:
    """Return what the user said in a saved conversation."""
    return [each["content"] for each in json.loads(path.read_text())["messages"] if each["role"] == "user"]


def test_a_final_backslash_is_content_and_quotes_hold_several_lines(chat, tmp_path: Path) -> None:
    chat("C:\\", '"""the cat', "/help", 'and the hat"""', '"""an ant"""', f"/save {tmp_path}/c.json", '"""a', "tan")
    assert said(tmp_path / "c.json") == ["C:\\", "the cat\n/help\nand the hat", "an ant"]


def test_commands(chat, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    outcome = chat(
        *("/help", "/regen", "/system", "/system in a land", "/system", "the cat", "/regen", "/stats"),
        *(f"/save {file}", "/reset", "/save", f"/load {file}", "an ant", "/load nothing.json", "/nonsense", "/quit"),
        "the hat",
    )
    assert outcome.status == 0
    for text in (
        "/help, /?           show this",
        "there is nothing to answer yet",
        "(no system message)",
        "a new conversation with this system message",
        "\nin a land\n",
        "of 512 tokens of context used",
        f"(2 messages saved to {file})",
        "(a new conversation)",
        "(/save needs a file name)",
        f"(2 messages loaded from {file})",
        "nothing.json: No such file",
        "no command /nonsense",
    ):
        assert text in outcome.stderr
    assert outcome.stderr.count("[6 tokens, ") == 4
    roles = [message["role"] for message in json.loads(file.read_text())["messages"]]
    assert roles == ["system", "user", "assistant"]


def test_a_full_context_drops_the_oldest_and_says_so(chat) -> None:
    outcome = chat(*["the cat and the hat in a land " * 2] * 14)
    assert outcome.status == 0 and outcome.stderr.count("[6 tokens, ") == 14
    assert "oldest messages no longer fit into the context and are left out from here on; /save keeps" in outcome.stderr


def test_a_message_that_is_too_long_does_not_end_the_chat(chat) -> None:
    outcome = chat("the cat " * 300, "an ant")
    assert outcome.status == 0
    assert "shorten the message" in outcome.stderr and outcome.stderr.count("[6 tokens, ") == 1


def test_quiet_prints_answers_alone(chat) -> None:
    outcome = chat("the cat", options=("-q",))
    assert outcome.stderr == "" and outcome.stdout


def test_at_a_terminal(model: Path, tmp_path: Path) -> None:
    import pty

    child, terminal = pty.fork()
    if not child:
        os.environ |= {
            "HOME": str(tmp_path),
            "XDG_CONFIG_HOME": str(tmp_path),
            "TERM": "xterm",
            "PROMPT_TOOLKIT_NO_CPR": "1",
        }
        arguments = ["chat", str(model), "-t", "1", "-c", "60000", "--no-fit", "-s", "1", "--ignore-eos"]
        os.execv(sys.executable, [sys.executable, "-c", "from moe_gguf.cli import main; main()", *arguments])
    try:
        converse(terminal)
        assert leave(terminal, child) == 0
        child = 0
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(terminal)
    assert "+/stats" in next(tmp_path.rglob("history")).read_text()


def converse(terminal: int) -> None:
    """Ask, stop the answer, stop a line, ask for numbers, leave."""
    screen = Screen(terminal)
    screen.wait_for(READY)
    os.write(terminal, b"the cat\r")
    screen.wait_for(b"\n", least=400)
    os.write(terminal, b"\x03")
    screen.wait_for(b"(stopped)")
    screen.wait_for(b"tokens/s")
    screen.wait_for(READY)
    os.write(terminal, b"\x03")
    screen.wait_for(b"Ctrl-D leaves")
    screen.wait_for(READY)
    os.write(terminal, b"/stats\r")
    screen.wait_for(b"of context used")


def leave(terminal: int, child: int) -> int:
    """Press Ctrl-D until the program listens; return how it ended."""
    for _ in range(60):
        os.write(terminal, b"\x04")
        patience = time.monotonic() + 0.5
        while select.select([terminal], [], [], 0.1)[0] and time.monotonic() < patience:
            with suppress(OSError):  # Linux's way to say that nobody is left at the other end
                os.read(terminal, 1000)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
    raise AssertionError("Ctrl-D does not end the chat")


class Screen:
    """What a terminal shows, read up to some place."""

    def __init__(self, terminal: int) -> None:
        self.terminal, self.unread = terminal, b""

    def wait_for(self, text: bytes, least: int = 0) -> None:
        """Read until a text came, and at least so many bytes; give up when nothing comes for long."""
        while text not in self.unread or len(self.unread) < least:
            ready, _, _ = select.select([self.terminal], [], [], 30)
            assert ready, f"{text!r} did not come: {self.unread[-300:]!r}"
            self.unread += os.read(self.terminal, 1000)
        assert b"Traceback" not in self.unread
        self.unread = self.unread[max(self.unread.index(text), least - 1) :].removeprefix(text)
