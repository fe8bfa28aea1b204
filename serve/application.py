"""The web application: paths to what answers them, over the models that are loaded."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ..formats.errors import MoeGgufError
from .anthropic import MessagesRequest, counted, messages, refused
from .bodies import read_body
from .chat import chat_completions
from .completions import completions
from .embeddings import embeddings
from .errors import ApiError, api_error
from .event_stream import json_response, refusal
from .facts import model_entry, model_list, props
from .guard import CLIENT
from .models import Models
from .openapi import description
from .requests import ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, TokenizeRequest, decode
from .service import Service
from .texts import counted as chat_tokens
from .texts import detokenized, templated, tokenized
from .watching import metrics, slots

Record = TypeVar("Record")


class Application:
    """What answers requests, for one model or several."""

    def __init__(self, models: Models, largest_body: int) -> None:
        """Serve models; no body may have more bytes than `largest_body`."""
        self.models = models
        self.largest_body = largest_body

    def routes(self) -> list[BaseRoute]:
        """Return the paths of the API."""
        get = (
            *(("/health", self.health), ("/v1/health", self.health), ("/props", self.props), ("/slots", self.slots)),
            *(("/v1/models", self.listed), ("/models", self.listed), ("/metrics", self.metrics)),
            *(("/v1/models/{name:path}", self.model), ("/openapi.json", self.openapi)),
        )
        post = (
            *(("/v1/chat/completions", self.chat), ("/chat/completions", self.chat)),
            *(("/v1/completions", self.completions), ("/completions", self.completion)),
            *(("/completion", self.completion), ("/v1/embeddings", self.embeddings), ("/embeddings", self.embeddings)),
            ("/v1/streams/lookup", self.streams),
            *(("/v1/messages", self.messages), ("/v1/messages/count_tokens", self.count_tokens)),
            *((f"{v1}/chat/completions/input_tokens", self.input_tokens) for v1 in ("", "/v1")),
            *(("/tokenize", self.tokenize), ("/detokenize", self.detokenize), ("/apply-template", self.apply_template)),
        )
        return [
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in get),
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in post),
        ]

    async def health(self, _: Request) -> Response:
        """Say that the server answers."""
        return json_response({"status": "ok"})

    async def props(self, request: Request) -> Response:
        """Say what the server and its model are."""
        async with self.models.leased(request.query_params.get("model")) as service:
            return json_response(props(service))

    async def slots(self, request: Request) -> Response:
        """Say what each place is at."""
        async with self.models.leased(request.query_params.get("model")) as service:
            return json_response(slots(service))

    async def metrics(self, request: Request) -> Response:
        """Return counters for Prometheus."""
        async with self.models.leased(request.query_params.get("model")) as service:
            begun = {"Process-Start-Time-Unix": str(service.loaded)}
            return Response(metrics(service), 200, begun, "text/plain; version=0.0.4; charset=utf-8")

    async def streams(self, _: Request) -> Response:
        """Say that no stream is kept that a client could come back to: an answer ends when its client goes away."""
        return json_response([])

    async def listed(self, _: Request) -> Response:
        """List the models."""
        return json_response(model_list(self.models))

    async def model(self, request: Request) -> Response:
        """Describe one model."""
        name = request.path_params["name"]
        if name not in self.models.shelf.paths:
            raise ApiError(404, f"there is no model {name[:200]!r}", "model", "model_not_found")
        return json_response(model_entry(self.models, name))

    async def chat(self, request: Request) -> Response:
        """Answer messages."""
        wanted = await self.wanted(request, ChatRequest)
        async with self.models.leased(wanted.model) as service:
            return await chat_completions(wanted, service, client_of(request))

    async def completions(self, request: Request) -> Response:
        """Go on with prompts, in OpenAI's form."""
        wanted = await self.wanted(request, CompletionRequest)
        async with self.models.leased(wanted.model) as service:
            return await completions(wanted, service, client_of(request), as_openai=True)

    async def completion(self, request: Request) -> Response:
        """Go on with prompts, in llama.cpp's form."""
        wanted = await self.wanted(request, CompletionRequest)
        async with self.models.leased(wanted.model) as service:
            return await completions(wanted, service, client_of(request), as_openai=False)

    async def embeddings(self, request: Request) -> Response:
        """Return vectors of texts."""
        wanted = await self.wanted(request, EmbeddingRequest)
        async with self.models.leased(wanted.model) as service:
            return json_response(await embeddings(wanted, service))

    async def messages(self, request: Request) -> Response:
        """Answer messages, in Anthropic's form."""
        try:
            wanted = await self.wanted(request, MessagesRequest)
            async with self.models.leased(wanted.model) as service:
                return await messages(wanted, service, client_of(request))
        except MoeGgufError as error:
            found = api_error(error, self.models.hidden)
            return json_response(refused(found), found.status, found.headers)

    async def count_tokens(self, request: Request) -> Response:
        """Count the tokens of messages."""
        return await self.computed(request, MessagesRequest, counted)

    async def input_tokens(self, request: Request) -> Response:
        """Count the tokens of messages, in llama.cpp's form."""
        return await self.computed(request, ChatRequest, chat_tokens)

    async def tokenize(self, request: Request) -> Response:
        """Return tokens of a text."""
        return await self.computed(request, TokenizeRequest, tokenized)

    async def detokenize(self, request: Request) -> Response:
        """Return the text of tokens."""
        return await self.computed(request, DetokenizeRequest, detokenized)

    async def apply_template(self, request: Request) -> Response:
        """Return the prompt that messages become."""
        return await self.computed(request, ChatRequest, templated)

    async def computed(self, request: Request, kind: type[Record], compute: Callable[[Any, Service], Any]) -> Response:
        """Answer by a function of the body and its model, in a thread beside the loop."""
        wanted: Any = await self.wanted(request, kind)
        async with self.models.leased(wanted.model) as service:
            return json_response(await run_sync(compute, wanted, service))

    async def openapi(self, _: Request) -> Response:
        """Describe the API."""
        return json_response(description())

    async def wanted(self, request: Request, kind: type[Record]) -> Record:
        """Return the body of a request as a record. Raises ApiError."""
        return decode(await read_body(request, self.largest_body), kind)

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
        return refusal(api_error(error, self.models.hidden))

    async def _http(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = {404: f"there is no {request.url.path}", 405: f"{request.method} is not for {request.url.path}"}
        return refusal(ApiError(error.status_code, what.get(error.status_code, str(error.detail))))


def client_of(request: Request) -> str:
    """Return whom a request comes from, for taking turns: which key was given, or else an address."""
    return getattr(request.state, CLIENT, None) or (request.client.host if request.client else "")


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)


async def _broken(_: Request, __: Exception) -> Response:
    return refusal(ApiError(500, "the server failed; its log says where"))
