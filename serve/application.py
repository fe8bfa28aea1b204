"""The web application: paths to what answers them, over the models that are loaded."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ..formats.errors import MoeGgufError
from .bodies import read_body
from .chat import chat_completions
from .errors import ApiError, api_error
from .event_stream import json_response, refusal
from .facts import model_list, props
from .requests import ChatRequest, decode
from .service import Service

Endpoint = Callable[[Request], Awaitable[Response]]


class Application:
    """What answers requests, for one model."""

    def __init__(self, service: Service, largest_body: int) -> None:
        """Serve a model; no body may have more bytes than `largest_body`."""
        self.service = service
        self.largest_body = largest_body

    def routes(self) -> list[BaseRoute]:
        """Return the paths of the API."""
        return [
            Route("/health", self.health),
            Route("/v1/health", self.health),
            Route("/props", self.props),
            Route("/v1/models", self.models),
            Route("/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/chat/completions", self.chat, methods=["POST"]),
        ]

    async def health(self, _: Request) -> Response:
        """Say that the server answers."""
        return json_response({"status": "ok"})

    async def props(self, _: Request) -> Response:
        """Say what the server and its model are."""
        return json_response(props(self.service))

    async def models(self, _: Request) -> Response:
        """List the models."""
        return json_response(model_list([self.service]))

    async def chat(self, request: Request) -> Response:
        """Answer messages."""
        wanted = decode(await read_body(request, self.largest_body), ChatRequest)
        return await chat_completions(wanted, self.service, client_of(request))

    def asgi(self, more: Sequence[BaseRoute] = ()) -> Starlette:
        """Return the application, with routes that need no model."""
        handlers: dict[Any, Any] = {
            MoeGgufError: self._refused,
            HTTPException: self._http,
            ClientDisconnect: _gone,
            Exception: _broken,
        }
        return Starlette(routes=[*self.routes(), *more], exception_handlers=handlers)

    async def _refused(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, MoeGgufError)
        return refusal(api_error(error, self.service.hidden))

    async def _http(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = {404: f"there is no {request.url.path}", 405: f"{request.method} is not for {request.url.path}"}
        return refusal(ApiError(error.status_code, what.get(error.status_code, str(error.detail))))


def client_of(request: Request) -> str:
    """Return whom a request comes from, for taking turns: an address."""
    return request.client.host if request.client else ""


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)


async def _broken(_: Request, __: Exception) -> Response:
    return refusal(ApiError(500, "the server failed; its log says where"))
