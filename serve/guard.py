"""Who may ask: keys, the Host header (DNS rebinding), pages of other origins (CORS)."""

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..formats.errors import MoeGgufError
from .errors import ApiError
from .event_stream import refusal

KEY_VARIABLE = "MOE_GGUF_API_KEY"
# What shows nothing of a model or of anybody's requests.
OPEN_PATHS = ("/", "/health", "/v1/health", "/openapi.json")
OPEN_FOLDERS = ("/page/",)
ANY = "*"
CLIENT = "client"  # whose turn it is, in a request's state: which key was given, where there are several


class GuardError(MoeGgufError):
    """A server that would be open to strangers, or keys that cannot be read."""


@dataclass(frozen=True)
class Access:
    """Who may ask: those with one of the `keys` (anybody when there are none), and pages of the `origins`.

    `is_local`: the server listens on a loopback address, where only names of it are taken as Host. `open_paths` need no
    key, beside those that never do.
    """

    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    is_local: bool = True
    open_paths: frozenset[str] = frozenset()


def access(host: str, keys: Sequence[str], key_file: Path | None, origins: Sequence[str]) -> Access:
    """Return who may ask a server at `host`; keys come from a file and the environment too.

    Raises GuardError for a public address without a key, and for a file without any.
    """
    found = [*keys, *([variable] if (variable := os.environ.get(KEY_VARIABLE)) else [])]
    if key_file is not None:
        try:
            lines = [line.strip() for line in key_file.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise GuardError(f"{key_file}: the keys cannot be read: {error}") from None
        from_file = [line for line in lines if line and not line.startswith("#")]
        if not from_file:
            raise GuardError(f"{key_file}: there is no key in it; write one a line")
        found += from_file
    if any(not key.strip() for key in found):
        raise GuardError("an empty text is no API key")
    local = is_loopback(host)
    if not local and not found:
        raise GuardError(
            f"--host {host} lets other machines in, and there is no key; give --api-key-file, or set {KEY_VARIABLE}"
        )
    return Access(tuple(found), tuple(origins), local)


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """An ASGI application in front of another one."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._digests = [hashlib.sha256(key.encode()).digest() for key in access.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on with the headers that its origin needs."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = self._allows(origin, headers.get("host", ""))
        response = self._refused(scope, headers, allowed)
        if response is None and scope["method"] == "OPTIONS" and headers.get("access-control-request-method"):
            response = Response(status_code=204)
        if origin is None or not allowed:
            await (self._app if response is None else response)(scope, receive, send)
            return

        async def send_with_origin(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                added["Access-Control-Allow-Origin"] = origin
                added["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"
                added["Access-Control-Allow-Headers"] = "authorization, content-type, x-api-key, anthropic-version"
                added.add_vary_header("Origin")
            await send(message)

        await (self._app if response is None else response)(scope, receive, send_with_origin)

    def _refused(self, scope: Scope, headers: Headers, allowed: bool) -> Response | None:
        if self._access.is_local and not _is_local_name(headers.get("host", "")):
            return refusal(ApiError(403, "the Host header names another machine; ask by 127.0.0.1 or localhost"))
        if not allowed:
            return refusal(ApiError(403, "pages of other origins may not ask; see --cors-origin"))
        path = scope["path"]
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDERS) or scope["method"] == "OPTIONS":
            return None
        if path in self._access.open_paths and scope["method"] in ("GET", "HEAD"):
            return None
        key = self._key(headers)
        if self._digests and key is None:
            return _unknown()
        if len(self._digests) > 1:  # one key is everybody's, and tells nobody from anybody
            scope.setdefault("state", {})[CLIENT] = f"key {key}"
        return None

    def _allows(self, origin: str | None, host: str) -> bool:
        """Tell whether a page of this origin may ask: our own, or one that was named. Programs name no origin."""
        if origin is None or origin in self._access.origins or ANY in self._access.origins:
            return True
        return origin.partition("://")[2] == host and origin.startswith(("http://", "https://"))

    def _key(self, headers: Headers) -> int | None:
        """Return which key was given, None for none of ours."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(given.encode()).digest()
        # Every key is compared, so that the time tells nothing.
        same = [hmac.compare_digest(digest, known) for known in self._digests]
        return same.index(True) if any(same) else None


def _unknown() -> Response:
    response = refusal(ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key"))
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _is_local_name(host: str) -> bool:
    name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
    return name == "localhost" or name.endswith(".localhost") or is_loopback(name)
