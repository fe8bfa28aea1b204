"""Requests that nobody means well with: the description's limits, broken bodies, slow and idle clients."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from moe_gguf.serve.connections import Protocol
from moe_gguf.serve.models import Models
from moe_gguf.serve.openapi import description
from moe_gguf.serve.service import Service

from .conftest import serving

SCHEMA = schemathesis.openapi.from_dict(description())
CHAT = "/v1/chat/completions"


@SCHEMA.parametrize()
@settings(
    max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
def test_what_the_description_allows_is_answered_and_the_rest_refused(case: Any, address: str) -> None:
    if isinstance(case.body, dict):
        for name in ("max_tokens", "max_completion_tokens", "n_predict", "n"):  # answers are short here
            if isinstance(case.body.get(name, 2), int):
                case.body[name] = min(case.body.get(name, 2), 2)
    response = case.call(base_url=address)
    assert response.status_code < 500, response.text
    assert response.status_code == 200 or response.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe", b'{"messages": "\xc3("}', b"\x00"),
        b"[" * 100_000,
        b'{"messages":' + b'[{"content":' * 20_000,
        b'{"messages":[{"role":"user","content":' + b"[" * 5_000 + b"]" * 5_000 + b"}]}",
        b'{"messages":[{"role":"user","content":"a"}],"max_tokens":' + b"9" * 5_000 + b"}",
        b'{"messages":[{"role":"user","content":"a"}],"temperature":1e999}',
        b'{"messages":[{"role":"user","content":"a"}],"temperature":NaN}',
        b'{"messages":[{"role":"user","content":"a"}],"seed":99999999999999999999999}',
        b'{"messages":[{"role":"user","content":"a"}],"logit_bias":{"99999999999999999999":1}}',
        b'{"messages":[{"role":"user","content":"a"}],"logit_bias":[[true,1],[null]]}',
        b'{"messages":[{"role":"user","content":"a"}],"grammar":"root ::= ((((("}',
        b'{"messages":[{"role":"user","content":"a"}],"tools":[null]}',
        b'{"messages":[{"role":"user","content":"a"}],"stop":[1]}',
        b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"file:///etc/passwd"}}]}]}',
    ],
    ids=lambda body: repr(body[:60]),
)
def test_broken_bodies_are_refused_in_a_sentence(http: httpx.Client, body: bytes) -> None:
    answer = http.post(CHAT, content=body)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_odd_texts_are_answered(http: httpx.Client) -> None:
    for text in ("\ud83d\ude00", "\x00", "\u202e", "a" * 3000, "<|im_end|>" * 50, "\ufffd\ufffe"):
        body = json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 2}, ensure_ascii=True)
        assert http.post(CHAT, content=body.encode()).status_code in (200, 400)
    lone = b'{"messages":[{"role":"user","content":"\\ud800"}],"max_tokens":2}'
    assert http.post(CHAT, content=lone).status_code in (200, 400)


def test_bodies_are_bounded(http: httpx.Client) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "a" * 1_100_000}]}).encode()
    assert http.post(CHAT, content=body).status_code == 413

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    assert http.post(CHAT, content=pieces()).status_code == 413


def test_idle_and_slow_clients_keep_nobody_out(address: str, http: httpx.Client) -> None:
    split = urlsplit(address)
    idle = [socket.create_connection((split.hostname, split.port)) for _ in range(1000)]
    try:
        for number, each in enumerate(idle):
            each.sendall(
                (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")[
                    number % 2
                ]
            )
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
        assert http.post(CHAT, json=body).status_code == 200
    finally:
        for each in idle:
            each.close()


def test_who_sends_no_whole_head_is_cut(service: Service) -> None:
    class Impatient(Protocol):
        seconds = 0.4

    with serving(Models.single(service), protocol=Impatient) as address, httpx.Client(base_url=address) as http:
        split = urlsplit(address)
        clients = [socket.create_connection((split.hostname, split.port), timeout=10) for _ in range(4)]
        silent, dripping, chatty, again = clients
        again.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answered = b""
        while not answered.endswith(b'{"status":"ok"}'):
            answered += again.recv(1000)
        again.sendall(b"GET /hea")
        gone = 0
        for letter in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 50:
            try:
                dripping.sendall(bytes([letter]))
            except OSError:
                gone += 1
                break
            assert http.get("/health").status_code == 200  # others are served, on a connection that stays
            time.sleep(0.02)
        assert gone and ended(silent) and ended(again)
        with suppress(OSError):
            chatty.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 1_000_000)
        assert ended(chatty)
        for each in clients:
            each.close()


def ended(client: socket.socket) -> bool:
    """Tell whether the other side has ended a connection."""
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


def test_who_leaves_in_the_middle_frees_the_place(address: str, http: httpx.Client, service: Service) -> None:
    before = service.scheduler.counters.cancelled
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1900, "ignore_eos": True}
    for stream in (True, False):
        sockets = []
        for _ in range(4):
            split = urlsplit(address)
            each = socket.create_connection((split.hostname, split.port))
            content = json.dumps(body | {"stream": stream}).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
            each.sendall(head.encode() + content)
            sockets.append(each)
        while len(service.scheduler.sequences.active) < 4:
            pass
        for each in sockets:
            each.close()
        assert http.post(CHAT, json=body | {"max_tokens": 3}).status_code == 200
    while service.scheduler.sequences.active:
        pass
    assert service.scheduler.counters.cancelled == before + 8


def test_no_answer_names_the_machine(http: httpx.Client, service: Service) -> None:
    folder = str(service.model.path.parent)
    texts = [http.get(path).text for path in ("/props", "/v1/models", "/slots", "/metrics", "/nothing")]
    body = {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"messages": 3}}
    texts.append(http.post(CHAT, json=body).text)
    assert not any(folder in text for text in texts)
