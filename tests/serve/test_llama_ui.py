"""llama.cpp's web UI (tools/ui): what it asks for, word for word, and what llama-server answers, key for key."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from moe_gguf.serve.event_stream import PING, EventStream
from moe_gguf.serve.folders import FolderError, folder_routes, open_paths
from moe_gguf.serve.guard import Access, Guard
from moe_gguf.serve.service import Service
from starlette.applications import Starlette
from starlette.testclient import TestClient

CHAT = "/v1/chat/completions"
# The bodies that the UI of llama.cpp (0.3.36 of llama-cpp-python) sends.
CLOCK = {
    "description": "Returns the current local date and time in ISO 8601 format, with the IANA time zone name",
    "name": "get_datetime",
    "parameters": {"properties": {}, "required": [], "type": "object"},
}
ASKS: dict[str, Any] = {
    "messages": [{"content": "Write one sentence about the sea. " * 20, "role": "user"}],
    "return_progress": True,
    "sse_ping_interval": 1,
    "stream": True,
    "tools": [{"function": CLOCK, "type": "function"}],
    "reasoning_format": "auto",
    "reasoning_control": True,
    "backend_sampling": False,
    "timings_per_token": True,
}
ATTACHES = [
    {"text": "\n\n--- File: notes.txt ---\nThe secret word is BANANA.\n", "type": "text"},
    {"text": "What is the secret word?", "type": "text"},
]
# What llama-server answers.
TIMINGS = (
    *("cache_n", "prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second"),
    *("predicted_n", "predicted_ms", "predicted_per_token_ms", "predicted_per_second"),
)
PROGRESS = ("total", "cache", "processed", "time_ms")


def streamed(http: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/completion"])
def test_progress_and_timings_come_as_from_llama_server(http: httpx.Client, service: Service, path: str) -> None:
    body = ASKS | {"prompt": f"once in {path} " * 60, "max_tokens": 4, "ignore_eos": True}
    if path == CHAT:
        del body["prompt"]
    chunks = streamed(http, path, body)
    reads = [chunk for chunk in chunks if "prompt_progress" in chunk]
    said = [chunk for chunk in chunks if "prompt_progress" not in chunk and "timings" in chunk]
    assert all(tuple(chunk["timings"]) == TIMINGS for chunk in reads + said)
    progress = [chunk["prompt_progress"] for chunk in reads]
    assert all(tuple(each) == PROGRESS for each in progress)
    first, last = progress[0], progress[-1]
    assert first["processed"] == first["cache"] and first["time_ms"] == 0
    assert reads[0]["timings"]["prompt_n"] == reads[0]["timings"]["prompt_ms"] == 0
    assert last["processed"] == last["total"] and reads[-1]["timings"]["prompt_ms"] > 0
    assert last["processed"] == last["cache"] + reads[-1]["timings"]["prompt_n"]
    counts = [chunk["timings"]["predicted_n"] for chunk in said]
    assert counts == sorted(counts) and counts[-1] == 4 and len(said) >= 2
    final = said[-1]["timings"]
    assert final["predicted_per_second"] == pytest.approx(3000 / final["predicted_ms"])


def test_a_prompt_that_is_too_long_is_refused_with_both_lengths(http: httpx.Client, service: Service) -> None:
    answer = http.post(CHAT, json={"messages": [{"role": "user", "content": "a" * 5000}]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["n_ctx"]) == (400, "context_length_exceeded", 2048)
    assert error["n_prompt_tokens"] > 2048


def test_usage_comes_with_timings_and_prompts_are_counted(http: httpx.Client) -> None:
    body = {"messages": ASKS["messages"], "max_tokens": 3}
    *_, last = streamed(http, CHAT, body | {"stream": True, "stream_options": {"include_usage": True}})
    assert not last["choices"] and tuple(last["timings"]) == TIMINGS
    counted = http.post("/v1/chat/completions/input_tokens", json=body).json()
    assert counted == {"input_tokens": last["usage"]["prompt_tokens"]}


def test_nothing_of_it_comes_unasked(http: httpx.Client) -> None:
    body = {"messages": ASKS["messages"], "stream": True, "max_tokens": 3}
    *chunks, last = streamed(http, CHAT, body)
    assert not any("timings" in chunk or "prompt_progress" in chunk for chunk in chunks) and "timings" in last


def test_attachments_and_what_the_page_begins_with(http: httpx.Client) -> None:
    body = ASKS | {"messages": [{"role": "user", "content": ATTACHES}], "max_tokens": 2}
    assert streamed(http, CHAT, body)[-1]["choices"][0]["finish_reason"]
    assert http.get("/props?autoload=false").json()["default_generation_settings"]["n_ctx"] > 0
    assert http.get("/props", params={"model": "tiny", "autoload": "false"}).json()["modalities"]["vision"] is False
    asked = {"conversation_ids": ["329cab46-32de-47de-a4fa-a58381dacf4e::tiny"]}
    assert http.post("/v1/streams/lookup", json=asked).json() == []


@pytest.mark.parametrize(
    ("more", "ending"),
    [
        ({}, "assistant\nOnce upon"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "assistant\nOnce upon"),
        ({"continue_final_message": False}, "assistant\nOnce upon<|im_end|>\n<|im_start|>assistant\n"),
        ({"add_generation_prompt": False}, "assistant\nOnce upon<|im_end|>\n"),
    ],
)
def test_an_answer_that_has_begun_is_gone_on_with(http: httpx.Client, more: dict[str, bool], ending: str) -> None:
    messages = [{"role": "user", "content": "Tell"}, {"role": "assistant", "content": "Once upon"}]
    prompt = http.post("/apply-template", json={"messages": messages} | more).json()["prompt"]
    assert prompt.endswith(f"<|im_start|>{ending}")
    both = {"messages": messages, "continue_final_message": True, "add_generation_prompt": True}
    assert http.post(CHAT, json=both).status_code == 400
    assert http.post(CHAT, json={"messages": messages[:1], "continue_final_message": True}).status_code == 400
    assert http.post(CHAT, json={"messages": [*messages, messages[1]]}).status_code == 400


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_a_silent_stream_is_kept_alive() -> None:

    async def slow() -> AsyncIterator[bytes]:
        while PING not in sent:
            await asyncio.sleep(0.05)
        yield b"data: 1\n\n"

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def send(message: Any) -> None:
        sent.append(message.get("body", message["type"]))

    sent: list[Any] = []
    stream = EventStream(slow(), lambda: None, lambda _: b"", ping_seconds=1)
    await stream({"type": "http"}, receive, send)
    assert sent == ["http.response.start", PING, b"data: 1\n\n", b""]


def test_the_page_of_a_folder_needs_no_key_and_shows_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page"
    with pytest.raises(FolderError, match="no index"):
        folder_routes(tmp_path)
    (page / "_app").mkdir(parents=True)
    (page / "index.html").write_text("<!doctype html>theirs")
    (page / "_app" / "bundle.js").write_text("1")
    (tmp_path / "secret").write_text("secret")
    (page / "link").symlink_to(tmp_path / "secret")
    app = Starlette(routes=folder_routes(page))
    client = TestClient(Guard(app, Access(("key",), open_paths=open_paths(page), is_local=False)))
    assert client.get("/").text == "<!doctype html>theirs"
    assert client.get("/_app/bundle.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/none.js").status_code == 401 and client.post("/_app/bundle.js").status_code == 401
    for path in ("/link", "/../secret", "/%2e%2e/secret"):
        assert "secret" not in client.get(path, headers={"Authorization": "Bearer key"}).text
    assert client.post("/tools", headers={"Authorization": "Bearer key"}).status_code == 404
