"""`moe-gguf serve` as a process: the line when it answers, the page, an end that lets answers end."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ..command import moe_gguf

COMMAND = (sys.executable, "-c", "from moe_gguf.cli import main; main()", "serve")


@pytest.fixture
def process(tiny_path: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server of the tiny mixture, and its address."""
    arguments = ("--port", "0", "-t", "1", "-c", "512", "--no-repack", "--api-key", "sesame", "-cram", "-1")
    with subprocess.Popen([*COMMAND, str(tiny_path), *arguments], stderr=subprocess.PIPE, text=True) as found:
        assert found.stderr
        for line in found.stderr:
            if heard := re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", line):
                yield found, heard[1]
                break
        found.kill()


def test_it_answers_shows_its_page_and_ends_when_the_last_answer_has(
    process: tuple["subprocess.Popen[str]", str],
) -> None:
    server, address = process
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    assert "<html" in httpx.get(address).text
    assert httpx.get(f"{address}/v1/models").status_code == 401
    headers = {"Authorization": "Bearer sesame"}
    body = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 2}
    twice = [httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=60) for _ in range(2)]
    cached = [each.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for each in twice]
    assert cached[0] == 0 < cached[1]  # no seed was asked for, so all that was read is taken over
    body |= {"max_tokens": 400, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, headers=headers, timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        server.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" and '"finish_reason":"length"' in rest[-2]
    ended = threading.Timer(30, server.kill)
    ended.start()
    assert server.wait() == 0
    ended.cancel()


def test_a_public_address_needs_a_key(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOE_GGUF_API_KEY", raising=False)
    outcome = moe_gguf("serve", str(tiny_path), "--host", "0.0.0.0")
    assert outcome.status == 1 and "--api-key-file" in outcome.stderr


def test_a_port_that_is_taken_is_said(tiny_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = moe_gguf("serve", str(tiny_path), "--port", str(port))
    assert outcome.status == 1 and f"127.0.0.1:{port}" in outcome.stderr
