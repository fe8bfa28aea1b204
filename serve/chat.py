"""POST /v1/chat/completions: messages in, an answer in OpenAI's form out, whole or streamed."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio.to_thread
from starlette.responses import Response

from ..runner.templates.message import Message, ToolCall, message_from_json
from .answer import Answer, Event
from .beginnings import beginning
from .errors import ApiError
from .event_stream import DONE, EventStream, WholeAnswer, data, failure
from .facts import fingerprint
from .requests import ChatRequest
from .sampling_fields import sampling_of, schema_grammar
from .service import Service, Settings
from .telling import FINISH, Delta, Json, Teller
from .timings import Reading, timings
from .tools import Toolset, toolset


@dataclass(frozen=True)
class Prepared:
    """A request that can be answered: its answers, not begun, and what tells each of them."""

    request: ChatRequest
    service: Service
    answers: Sequence[Answer]
    tellers: Sequence[Teller]
    id: str
    created: int

    def chunk(self, choices: list[Json], **more: Any) -> Json:
        """Return a chunk of a stream."""
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.service.name,
            "system_fingerprint": fingerprint(),
            "choices": choices,
            **more,
        }


async def chat_completions(request: ChatRequest, service: Service, client: str) -> Response:
    """Answer a request. Raises ApiError and EngineError before anything is sent."""
    prepared = await anyio.to_thread.run_sync(prepare, request, service, client)
    service.enter(prepared.answers)

    def close() -> None:
        service.leave(prepared.answers)

    if request.stream:
        return EventStream(chunks(prepared), close, partial(failure, hidden=service.hidden), request.sse_ping_interval)
    return WholeAnswer(lambda: whole(prepared), close)


def prepare(request: ChatRequest, service: Service, client: str) -> Prepared:
    """Render and tokenize the messages, and make the samplers. Raises ApiError and EngineError."""
    tools = toolset(request, messages_of(request), service.tool_format, service.model)
    begun = beginning(request, service, tools)
    prompt = service.chat.tokens(begun.rendered)
    settings = settings_of(request, service, tools)
    n = request.n or 1
    answers = service.made([prompt] * n, seeded(settings, n), client)
    tellers = [Teller(service.model, begun.thoughts(), request.x_experts, tools.calls()) for _ in answers]
    return Prepared(request, service, answers, tellers, f"chatcmpl-{uuid.uuid4().hex}", int(time.time()))


def messages_of(request: ChatRequest) -> list[Message]:
    """Return the messages. Raises EngineError that names the field which is wrong."""
    return [message_from_json(message) for message in request.messages]


def settings_of(request: ChatRequest, service: Service, tools: Toolset) -> Settings:
    """Return how the prompt is to be answered. Raises ApiError and EngineError."""
    sampling = sampling_of(request, service.sampling, service.model, service.engine.n_ctx_seq)
    if grammar := format_grammar(request) or tools.grammar:
        if sampling.grammar:
            raise ApiError(400, "give a grammar, a response_format or a tool_choice, not two", "grammar")
        sampling = replace(sampling, grammar=grammar)
    limits = (request.max_completion_tokens, request.max_tokens, request.n_predict)
    wanted = next((limit for limit in limits if limit is not None), service.options.n_predict)
    stops = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    return Settings(
        sampling=sampling,
        n_predict=wanted,
        stops=stops,
        endings=service.chat.endings,
        spelled=service.chat.spelled | tools.spelled,
        n_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        asks_experts=bool(request.x_experts),
        only_expert=request.x_only_expert,
        seconds=request.t_max_predict_ms / 1000 if request.t_max_predict_ms else None,
    )


def seeded(settings: Settings, n: int) -> list[Settings]:
    """Return settings for n answers to one prompt: a seed that was given counts up, so that they differ."""
    seed = settings.sampling.seed
    if seed is None or not settings.sampling.has_seed:
        return [settings] * n
    return [replace(settings, sampling=replace(settings.sampling, seed=(seed + k) % 2**32)) for k in range(n)]


def format_grammar(request: ChatRequest) -> str | None:
    """Return the grammar that response_format asks for. Raises ApiError and EngineError."""
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return schema_grammar(wanted.schema or {})
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise ApiError(400, "json_schema needs a schema", "response_format.json_schema")
    return schema_grammar(wanted.json_schema.schema)


async def chunks(prepared: Prepared) -> AsyncIterator[bytes]:
    """Yield the events of a stream: for each answer its role, its text as it comes, why it ended; then the usage."""
    request, answers = prepared.request, prepared.answers
    usage_wanted = bool(request.stream_options and request.stream_options.include_usage)
    reading = Reading(answers, request.return_progress)
    begun: set[int] = set()
    n_open = len(answers)
    while n_open:
        heard = by_answer(await answers[0].inbox.take(reading.seconds))
        out = b""
        for news in reading.news([answer.index for answer, _ in heard]):
            one = choice(news.answer.index, {"role": "assistant", "content": None})
            out += data(prepared.chunk([one], **news.as_json(request.timings_per_token)))
        for answer, events in heard:
            if answer.index not in begun:
                begun.add(answer.index)
                out += data(prepared.chunk([choice(answer.index, {"role": "assistant", "content": ""})]))
            delta = prepared.tellers[answer.index].told(events)
            if delta.text or delta.thought or delta.calls or delta.logprobs or delta.experts:
                out += data(delta_chunk(prepared, answer, delta))
            if delta.finish is not None:
                n_open -= 1
                finish = finish_of(delta, prepared.tellers[answer.index])
                out += data(prepared.chunk([choice(answer.index, {}, finish)], timings=timings(answer)))
        if out:
            yield out
    if usage_wanted:
        yield data(prepared.chunk([], usage=usage(answers), timings=timings(answers[0])))
    yield DONE


def delta_chunk(prepared: Prepared, answer: Answer, delta: Delta) -> Json:
    """Return the chunk of what an answer says next."""
    said: Json = {}
    if delta.thought:
        said["reasoning_content"] = delta.thought
    if delta.text:
        said["content"] = delta.text
    if delta.calls:
        teller = prepared.tellers[answer.index]
        said["tool_calls"] = [{"index": teller.n_calls + k} | each for k, each in enumerate(called(delta.calls))]
        teller.n_calls += len(delta.calls)
    one = choice(answer.index, said)
    if delta.logprobs:
        one["logprobs"] = {"content": delta.logprobs, "refusal": None}
    more: Json = {"x_experts": delta.experts} if prepared.request.x_experts else {}
    if prepared.request.timings_per_token:
        more["timings"] = timings(answer)
    return prepared.chunk([one], **more)


def called(calls: Sequence[ToolCall]) -> list[Json]:
    """Return calls in OpenAI's form, each with an id of its own."""
    return [
        {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]


def finish_of(delta: Delta, teller: Teller) -> str:
    """Return why an answer ended, in OpenAI's words."""
    finish = FINISH[delta.finish or "end"]
    return "tool_calls" if teller.n_calls and finish == "stop" else finish


def choice(index: int, delta: Json, finish: str | None = None) -> Json:
    """Return a choice of a chunk."""
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def by_answer(events: Sequence[tuple[Answer, Event]]) -> list[tuple[Answer, list[Event]]]:
    """Return events by the answer that they are of, in order."""
    if len(events) == 1:
        return [(events[0][0], [events[0][1]])]
    found: dict[int, tuple[Answer, list[Event]]] = {}
    for answer, event in events:
        found.setdefault(answer.index, (answer, []))[1].append(event)
    return list(found.values())


async def gathered(answers: Sequence[Answer], tellers: Sequence[Teller]) -> list[Delta]:
    """Wait for all of some answers and return what each says."""
    heard: list[list[Event]] = [[] for _ in answers]
    n_open = len(answers)
    while n_open:
        for answer, event in await answers[0].inbox.take():
            heard[answer.index].append(event)
            n_open -= event.piece.finish is not None
    return [teller.told(events) for teller, events in zip(tellers, heard, strict=True)]


async def whole(prepared: Prepared) -> Json:
    """Return the whole answer."""
    told = await gathered(prepared.answers, prepared.tellers)
    choices = []
    for index, delta in enumerate(told):
        message: Json = {"role": "assistant", "content": delta.text, "refusal": None}
        if delta.thought:
            message["reasoning_content"] = delta.thought.strip()
        if delta.calls:
            message |= {"content": delta.text.strip() or None, "tool_calls": called(delta.calls)}
            prepared.tellers[index].n_calls = len(delta.calls)
        finish = finish_of(delta, prepared.tellers[index])
        one: Json = {"index": index, "message": message, "finish_reason": finish}
        one["logprobs"] = {"content": delta.logprobs, "refusal": None} if prepared.request.logprobs else None
        if prepared.request.x_experts:
            one["x_experts"] = delta.experts
        choices.append(one)
    return {
        "id": prepared.id,
        "object": "chat.completion",
        "created": prepared.created,
        "model": prepared.service.name,
        "system_fingerprint": fingerprint(),
        "choices": choices,
        "usage": usage(prepared.answers),
        "timings": timings(prepared.answers[0]),
        **({"x_experts": told[0].experts} if prepared.request.x_experts else {}),
    }


def usage(answers: Sequence[Answer]) -> Json:
    """Return what answers took, in tokens; those of a prompt that several answers share count once."""
    n_prompt = answers[0].generation.n_prompt
    n_answer = sum(len(answer.generation.tokens) for answer in answers)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_answer,
        "total_tokens": n_prompt + n_answer,
        "prompt_tokens_details": {"cached_tokens": answers[0].generation.n_reused},
    }
