"""Who may ask: keys, Host headers, origins, addresses."""

from pathlib import Path

import httpx
import pytest
from moe_gguf.serve.application import client_of
from moe_gguf.serve.guard import KEY_VARIABLE, Access, Guard, GuardError, access
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route


async def _anything(request: Request) -> Response:
    return PlainTextResponse(client_of(request))


PATHS = ("/", "/health", "/v1/models")


def client(allowed: Access, host: str = "127.0.0.1:8080") -> httpx.AsyncClient:
    inner = Starlette(routes=[Route(path, _anything, methods=["GET", "POST"]) for path in PATHS])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=Guard(inner, allowed)), base_url=f"http://{host}")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "one"}, 401),
        ({"Authorization": "Bearer one"}, 200),
        ({"Authorization": "bearer two"}, 200),
        ({"X-Api-Key": "two"}, 200),
    ],
)
async def test_keys(headers: dict[str, str], status: int) -> None:
    async with client(Access(("one", "two"))) as http:
        answer = await http.get("/v1/models", headers=headers)
        assert answer.status_code == status
        assert status == 200 or answer.json()["error"]["code"] == "invalid_api_key"
        assert (await http.get("/health")).status_code == 200 and (await http.get("/")).status_code == 200


@pytest.mark.anyio
async def test_clients_take_turns_by_their_keys_where_there_are_several() -> None:
    async def whose(allowed: Access, key: str) -> str:
        async with client(allowed) as http:
            return (await http.get("/v1/models", headers={"X-Api-Key": key})).text

    both = Access(("one", "two"))
    assert [await whose(both, key) for key in ("one", "two", "one")] == ["key 0", "key 1", "key 0"]
    assert await whose(Access(("one",)), "one") == await whose(Access(), "") == "127.0.0.1"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost:8080", 200), ("127.0.0.1", 200), ("[::1]:8080", 200), ("moe.localhost", 200)),
        *(("evil.example", 403), ("127.0.0.1.evil.example", 403), ("", 403), ("192.168.1.4:8080", 403)),
    ],
)
async def test_hosts_on_the_loopback(host: str, status: int) -> None:
    async with client(Access()) as http:
        assert (await http.get("/health", headers={"Host": host})).status_code == status
    async with client(Access(("key",), is_local=False)) as http:
        assert (await http.get("/health", headers={"Host": host})).status_code == 200


@pytest.mark.anyio
async def test_pages_of_other_origins_are_shut_out_unless_named() -> None:
    ask = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
    async with client(Access()) as http:
        assert (await http.options("/v1/models", headers=ask)).status_code == 403
        assert (await http.post("/v1/models", headers={"Origin": "https://chat.example"})).status_code == 403
        assert (await http.post("/v1/models", headers={"Origin": "http://127.0.0.1:8080"})).status_code == 200
    async with client(Access(origins=("https://chat.example",))) as http:
        answer = await http.options("/v1/models", headers=ask)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        assert (await http.post("/v1/models", headers={"Origin": "https://other.example"})).status_code == 403


def test_keys_come_from_files_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    file = tmp_path / "keys"
    file.write_text("# ours\nfrom-file\n\n")
    assert access("127.0.0.1", (), None, ()) == Access()
    assert access("0.0.0.0", ("given",), file, ()).keys == ("given", "from-file")
    monkeypatch.setenv(KEY_VARIABLE, "from-environment")
    assert access("::", (), None, ()) == Access(("from-environment",), is_local=False)


def test_a_public_address_without_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(GuardError, match="--api-key-file"):
        access("0.0.0.0", (), None, ())
    empty = tmp_path / "keys"
    empty.write_text("# none yet\n")
    with pytest.raises(GuardError, match="no key"):
        access("127.0.0.1", (), empty, ())
    with pytest.raises(GuardError, match="empty"):
        access("127.0.0.1", ("",), None, ())
