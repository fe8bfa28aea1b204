"""POST /v1/messages: Anthropic's API over the same answers; messages and tools become OpenAI's form and come back."""

import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import anyio.to_thread
import msgspec
from msgspec import Meta
from starlette.responses import Response

from ..runner.templates.message import ToolCall
from .chat import Prepared, gathered, prepare
from .errors import TYPES, ApiError, api_error
from .event_stream import EventStream, WholeAnswer, named
from .requests import ChatRequest, FunctionName, NamedTool, Stops
from .service import Service
from .telling import Delta, Json

REASONS = {"end": "end_turn", "stop": "stop_sequence", "length": "max_tokens", "context": "max_tokens"}


class Thinking(msgspec.Struct, kw_only=True):
    """Whether the model is to think."""

    type: Literal["enabled", "disabled", "adaptive"] = "enabled"
    budget_tokens: int | None = None


class MessagesRequest(msgspec.Struct, kw_only=True):
    """POST /v1/messages and /v1/messages/count_tokens."""

    messages: Annotated[list[Json], Meta(min_length=1, max_length=10_000)]
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    model: str | None = None
    system: str | list[Json] | None = None
    stop_sequences: Stops | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1000)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    tools: Annotated[list[Json], Meta(max_length=256)] | None = None
    tool_choice: Json | None = None
    thinking: Thinking | None = None
    metadata: Json | None = None


async def messages(request: MessagesRequest, service: Service, client: str) -> Response:
    """Answer a request. Raises ApiError and EngineError before anything is sent."""
    prepared = await anyio.to_thread.run_sync(prepare, chat_request(request), service, client)
    service.enter(prepared.answers)

    def close() -> None:
        service.leave(prepared.answers)

    if request.stream:
        return EventStream(
            events(prepared), close, lambda error: named("error", refused(api_error(error, service.hidden)))
        )
    return WholeAnswer(lambda: whole(prepared), close)


def counted(request: MessagesRequest, service: Service) -> Json:
    """Return how many tokens a request's prompt has. Raises ApiError and EngineError."""
    prepared = prepare(chat_request(request), service, "")
    return {"input_tokens": prepared.answers[0].generation.n_prompt}


def refused(error: ApiError) -> Json:
    """Return an error in Anthropic's form."""
    kind = TYPES.get(error.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


def chat_request(request: MessagesRequest) -> ChatRequest:
    """Return the same request in OpenAI's form. Raises ApiError for blocks that are no text."""
    found: list[Json] = []
    if request.system:
        found.append({"role": "system", "content": _text(request.system)})
    for message in request.messages:
        found += _messages(message)
    tools = [_tool(tool) for tool in request.tools or ()]
    thinking = None if request.thinking is None else request.thinking.type != "disabled"
    return ChatRequest(
        messages=found,
        max_tokens=request.max_tokens,
        stop=request.stop_sequences,
        stream=request.stream,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        tools=tools or None,
        tool_choice=_choice(request.tool_choice),
        chat_template_kwargs=None if thinking is None else {"enable_thinking": thinking, "thinking": thinking},
    )


def _text(content: Any) -> str:
    """Return the text of a content. Raises ApiError for other blocks."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ApiError(400, "a content is a text or a list of blocks", "messages")
    texts = []
    for block in content:
        if not isinstance(block, dict) or block.get("type") != "text" or not isinstance(block.get("text"), str):
            raise ApiError(400, "only blocks of text can be read here", "messages")
        texts.append(block["text"])
    return "\n".join(texts)


def _messages(message: Json) -> list[Json]:
    """Return one message of Anthropic's as those of OpenAI's: results of tools are messages of their own there."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise ApiError(400, "a message's role is user or assistant", "messages")
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    if not all(isinstance(block, dict) for block in blocks):
        raise ApiError(400, "a block of a content is an object with a type", "messages")
    of_kind = {kind: [block for block in blocks if block.get("type") == kind] for kind in ("tool_use", "tool_result")}
    thoughts = [str(block.get("thinking", "")) for block in blocks if block.get("type") == "thinking"]
    others = ("tool_use", "tool_result", "thinking", "redacted_thinking")
    rest = [block for block in blocks if block.get("type") not in others]
    found: list[Json] = [
        {"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": _text(block.get("content"))}
        for block in of_kind["tool_result"]
    ]
    calls = [
        {
            "id": str(block.get("id", "")),
            "type": "function",
            "function": {"name": str(block.get("name", "")), "arguments": _json(block.get("input", {}))},
        }
        for block in of_kind["tool_use"]
    ]
    if rest or calls or not found:
        one: Json = {"role": role, "content": _text(rest)}
        one |= {"tool_calls": calls} if calls else {}
        found.append(one | ({"reasoning_content": "\n".join(thoughts)} if thoughts else {}))
    return found


def _tool(tool: Json) -> Json:
    function = {"name": tool.get("name"), "description": tool.get("description", "")}
    return {"type": "function", "function": function | {"parameters": tool.get("input_schema") or {"type": "object"}}}


def _choice(choice: Json | None) -> Literal["none", "auto", "required"] | NamedTool | None:
    kind = choice.get("type") if choice else None
    if kind == "tool":
        return NamedTool(function=FunctionName(name=str((choice or {}).get("name"))))
    return {"any": "required", "auto": "auto", "none": "none"}.get(str(kind))  # pyright: ignore[reportReturnType]


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def head(prepared: Prepared) -> Json:
    """Return what a message begins with."""
    return {
        "id": f"msg_{prepared.id.removeprefix('chatcmpl-')}",
        "type": "message",
        "role": "assistant",
        "model": prepared.service.name,
    }


def usage(prepared: Prepared) -> Json:
    """Return what an answer took, in tokens."""
    generation = prepared.answers[0].generation
    return {
        "input_tokens": generation.n_prompt - generation.n_reused,
        "cache_read_input_tokens": generation.n_reused,
        "cache_creation_input_tokens": 0,
        "output_tokens": len(generation.tokens),
    }


def ending(prepared: Prepared, delta: Delta, n_calls: int) -> Json:
    """Return why an answer ended."""
    reason = REASONS[delta.finish or "end"]
    stopped = prepared.answers[0].generation.stream.stopped if reason == "stop_sequence" else None
    if n_calls and reason != "max_tokens":
        reason, stopped = "tool_use", None
    return {"stop_reason": reason, "stop_sequence": stopped}


async def whole(prepared: Prepared) -> Json:
    """Return the whole message."""
    (delta,) = await gathered(prepared.answers, prepared.tellers)
    content: list[Json] = []
    if delta.thought:
        content.append({"type": "thinking", "thinking": delta.thought.strip(), "signature": ""})
    if delta.text or not delta.calls:
        content.append({"type": "text", "text": delta.text})
    content += [block_of(call) | {"input": msgspec.json.decode(call.arguments)} for call in delta.calls]
    found = head(prepared) | {"content": content} | ending(prepared, delta, len(delta.calls))
    return found | {"usage": usage(prepared)}


def block_of(call: ToolCall) -> Json:
    """Return the block that a call begins with."""
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": call.name, "input": {}}


class Blocks:
    """The blocks of a streamed message: one is open at a time."""

    def __init__(self) -> None:
        """Begin before the first one."""
        self._index = -1
        self._kind: str | None = None

    def part(self, kind: str, text: str) -> bytes:
        """Return the events that add text to a block of a kind, begun if need be."""
        if not text:
            return b""
        out = b""
        if kind != self._kind:
            begun = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
            out = self.end() + self._begin(kind, begun)
        return out + self._delta({"type": f"{kind}_delta", kind: text})

    def call(self, call: ToolCall) -> bytes:
        """Return the events of a call."""
        begun = self.end() + self._begin("tool_use", block_of(call))
        return begun + self._delta({"type": "input_json_delta", "partial_json": call.arguments}) + self.end()

    def end(self) -> bytes:
        """Return the event that closes the block that is open."""
        if self._kind is None:
            return b""
        self._kind = None
        return named("content_block_stop", {"type": "content_block_stop", "index": self._index})

    def _begin(self, kind: str, block: Json) -> bytes:
        self._index, self._kind = self._index + 1, kind
        begun = {"type": "content_block_start", "index": self._index, "content_block": block}
        return named("content_block_start", begun)

    def _delta(self, delta: Json) -> bytes:
        return named("content_block_delta", {"type": "content_block_delta", "index": self._index, "delta": delta})


async def events(prepared: Prepared) -> AsyncIterator[bytes]:
    """Yield the events of a stream."""
    answer, teller = prepared.answers[0], prepared.tellers[0]
    blocks, begun, n_calls = Blocks(), False, 0
    while True:
        delta = teller.told([event for _, event in await answer.inbox.take()])
        out = b""
        if not begun:
            begun = True
            message = head(prepared) | {"content": [], "stop_reason": None, "stop_sequence": None}
            message |= {"usage": usage(prepared) | {"output_tokens": 0}}
            out = named("message_start", {"type": "message_start", "message": message})
        out += blocks.part("thinking", delta.thought) + blocks.part("text", delta.text)
        out += b"".join(map(blocks.call, delta.calls))
        n_calls += len(delta.calls)
        if delta.finish is not None:
            last = {"type": "message_delta", "delta": ending(prepared, delta, n_calls), "usage": usage(prepared)}
            out += blocks.end() + named("message_delta", last)
            yield out + named("message_stop", {"type": "message_stop"})
            return
        if out:
            yield out
