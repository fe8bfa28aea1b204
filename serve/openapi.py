"""The API described by OpenAPI 3.1, from the same records that requests are checked with: GET /openapi.json."""

from collections.abc import Mapping
from typing import Any

import msgspec

from .anthropic import MessagesRequest
from .facts import build_info
from .requests import ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, TokenizeRequest

Json = dict[str, Any]
ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
GETS: Mapping[str, str] = {
    "/health": "Whether the server answers.",
    "/props": "What the server and its model are.",
    "/slots": "What each place is at.",
    "/v1/models": "The models.",
}
POSTS: Mapping[str, tuple[type, str]] = {
    "/v1/chat/completions": (ChatRequest, "Answer messages (OpenAI)."),
    "/v1/completions": (CompletionRequest, "Go on with a prompt (OpenAI)."),
    "/v1/embeddings": (EmbeddingRequest, "Vectors of texts (OpenAI)."),
    "/v1/messages": (MessagesRequest, "Answer messages (Anthropic)."),
    "/v1/messages/count_tokens": (MessagesRequest, "Count the tokens of messages (Anthropic)."),
    "/completion": (CompletionRequest, "Go on with a prompt (llama.cpp)."),
    "/tokenize": (TokenizeRequest, "Tokens of a text."),
    "/detokenize": (DetokenizeRequest, "The text of tokens."),
    "/apply-template": (ChatRequest, "The prompt that messages become."),
}


def description() -> Json:
    """Return the OpenAPI document."""
    kinds = list(dict.fromkeys(kind for kind, _ in POSTS.values()))
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths: Json = {path: {"get": _operation(text)} for path, text in GETS.items()}
    paths["/metrics"] = {"get": {"summary": "Counters for Prometheus.", "responses": {"200": _content("text/plain")}}}
    for path, (kind, text) in POSTS.items():
        body = {"required": True, "content": {"application/json": {"schema": by_kind[kind]}}}
        paths[path] = {"post": _operation(text, may_stream=True) | {"requestBody": body}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "moe-gguf serve", "version": build_info().split()[-1]},
        "paths": paths,
        "security": [{}, {"key": []}],
        "components": {
            "schemas": components | {"Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(text: str, may_stream: bool = False) -> Json:
    answered = _content("application/json")
    if may_stream:
        answered["content"]["text/event-stream"] = {}
    refused = _content("application/json", {"$ref": "#/components/schemas/Error"})
    return {"summary": text, "responses": {"200": answered, "4XX": refused, "5XX": refused}}


def _content(kind: str, schema: Json | None = None) -> Json:
    return {"description": "", "content": {kind: {"schema": schema} if schema else {}}}
