"""POST /v1/completions in OpenAI's form, and /completion in llama.cpp's: prompts in, what follows them out."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio.to_thread
from starlette.responses import Response

from ..runner.model import detokenize, end_tokens
from ..runner.templates.thinking import ThoughtStream
from .answer import Answer
from .chat import by_answer, gathered, seeded
from .errors import ApiError
from .event_stream import DONE, EventStream, WholeAnswer, data, failure
from .facts import fingerprint, sampling_json
from .prompts import prompts_of, spelled
from .requests import CompletionRequest
from .sampling_fields import sampling_of
from .service import Service, Settings
from .telling import FINISH, Delta, Json, Teller
from .timings import Reading, timings

# runner.generation's reasons in llama.cpp's words
STOP_TYPES = {"end": "eos", "stop": "word", "length": "limit", "context": "limit"}


@dataclass(frozen=True)
class Prepared:
    """A request that can be answered: n answers to each prompt, not begun."""

    request: CompletionRequest
    service: Service
    answers: Sequence[Answer]
    tellers: Sequence[Teller]
    settings: Settings
    id: str
    created: int

    def head(self) -> Json:
        """Return what every object of an answer begins with."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.service.name,
            "system_fingerprint": fingerprint(),
        }


async def completions(request: CompletionRequest, service: Service, client: str, as_openai: bool) -> Response:
    """Answer a request. Raises ApiError and EngineError before anything is sent."""
    prepared = await anyio.to_thread.run_sync(prepare, request, service, client, as_openai)
    service.enter(prepared.answers)

    def close() -> None:
        service.leave(prepared.answers)

    if request.stream:
        events = chunks(prepared) if as_openai else llamacpp_chunks(prepared)
        return EventStream(events, close, partial(failure, hidden=service.hidden), request.sse_ping_interval)
    return WholeAnswer(lambda: whole(prepared) if as_openai else llamacpp_whole(prepared), close)


def prepare(request: CompletionRequest, service: Service, client: str, as_openai: bool) -> Prepared:
    """Tokenize the prompts and make the samplers. Raises ApiError and EngineError."""
    if request.suffix:
        raise ApiError(400, "suffix is not supported", "suffix")
    prompts = prompts_of(service.model, request.prompt)
    settings = settings_of(request, service, as_openai)
    n = request.n or 1
    each = [(prompt, one) for prompt in prompts for one in seeded(settings, n)]
    answers = service.made([prompt for prompt, _ in each], [one for _, one in each], client)
    tellers = [Teller(service.model, ThoughtStream(None), request.x_experts) for _ in answers]
    return Prepared(request, service, answers, tellers, settings, f"cmpl-{uuid.uuid4().hex}", int(time.time()))


def settings_of(request: CompletionRequest, service: Service, as_openai: bool) -> Settings:
    """Return how the prompts are to be answered. Raises ApiError and EngineError."""
    limits = (request.max_tokens, request.n_predict) if as_openai else (request.n_predict, request.max_tokens)
    n_logprobs = request.logprobs if as_openai else request.n_probs or None
    return Settings(
        sampling=sampling_of(request, service.sampling, service.model, service.engine.n_ctx_seq),
        n_predict=next((limit for limit in limits if limit is not None), service.options.n_predict),
        stops=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        n_logprobs=n_logprobs,
        asks_experts=bool(request.x_experts),
        only_expert=request.x_only_expert,
        seconds=request.t_max_predict_ms / 1000 if request.t_max_predict_ms else None,
    )


async def chunks(prepared: Prepared) -> AsyncIterator[bytes]:
    """Yield the events of a stream in OpenAI's form."""
    request, answers = prepared.request, prepared.answers
    reading = Reading(answers, request.return_progress)
    echoed: set[int] = set()
    n_open = len(answers)
    while n_open:
        heard = by_answer(await answers[0].inbox.take(reading.seconds))
        out = b""
        for news in reading.news([answer.index for answer, _ in heard]):
            one = choice(news.answer.index, Delta(), request, None)
            out += data(prepared.head() | {"choices": [one]} | news.as_json(request.timings_per_token))
        for answer, events in heard:
            delta = prepared.tellers[answer.index].told(events)
            if request.echo and answer.index not in echoed:
                echoed.add(answer.index)
                delta.text = detokenize(prepared.service.model, answer.prompt) + delta.text
            if delta:
                finish = FINISH[delta.finish] if delta.finish else None
                n_open -= delta.finish is not None
                one = prepared.head() | {"choices": [choice(answer.index, delta, request, finish)]}
                if finish or request.timings_per_token:
                    one["timings"] = timings(answer)
                out += data(one | more(request, delta))
        if out:
            yield out
    if request.stream_options and request.stream_options.include_usage:
        yield data(prepared.head() | {"choices": [], "usage": usage(answers), "timings": timings(answers[0])})
    yield DONE


async def whole(prepared: Prepared) -> Json:
    """Return the whole answer in OpenAI's form."""
    request = prepared.request
    told = await gathered(prepared.answers, prepared.tellers)
    choices = []
    for answer, delta in zip(prepared.answers, told, strict=True):
        if request.echo:
            delta.text = detokenize(prepared.service.model, answer.prompt) + delta.text
        choices.append(choice(answer.index, delta, request, FINISH[delta.finish or "end"]))
    found = prepared.head() | {"choices": choices, "usage": usage(prepared.answers)}
    return found | {"timings": timings(prepared.answers[0])} | more(request, told[0])


def more(request: CompletionRequest, delta: Delta) -> Json:
    """Return what an answer carries beside its choices."""
    return {"x_experts": delta.experts} if request.x_experts else {}


def choice(index: int, delta: Delta, request: CompletionRequest, finish: str | None) -> Json:
    """Return a choice with the log probabilities of OpenAI's older API."""
    logprobs: Json | None = None
    if request.logprobs is not None:
        tokens = [entry["token"] for entry in delta.logprobs]
        offsets = [sum(map(len, tokens[:number])) for number in range(len(tokens))]
        logprobs = {
            "tokens": tokens,
            "token_logprobs": [entry["logprob"] for entry in delta.logprobs],
            "top_logprobs": [
                {top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in delta.logprobs
            ],
            "text_offset": offsets,
        }
    return {"index": index, "text": delta.text, "logprobs": logprobs, "finish_reason": finish}


def usage(answers: Sequence[Answer]) -> Json:
    """Return what answers took, in tokens; each prompt counts once."""
    prompts = {id(answer.prompt): answer.generation for answer in answers}
    n_prompt = sum(generation.n_prompt for generation in prompts.values())
    n_answer = sum(len(answer.generation.tokens) for answer in answers)
    n_cached = sum(generation.n_reused for generation in prompts.values())
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_answer,
        "total_tokens": n_prompt + n_answer,
        "prompt_tokens_details": {"cached_tokens": n_cached},
    }


async def llamacpp_chunks(prepared: Prepared) -> AsyncIterator[bytes]:
    """Yield the events of a stream in llama.cpp's form."""
    request, answers = prepared.request, prepared.answers
    reading = Reading(answers, request.return_progress)
    has_new_line: set[int] = set()
    n_open = len(answers)
    while n_open:
        heard = by_answer(await answers[0].inbox.take(reading.seconds))
        out = b""
        for news in reading.news([answer.index for answer, _ in heard]):
            out += data(piece_of(news.answer, Delta()) | news.as_json(request.timings_per_token))
        for answer, events in heard:
            delta = prepared.tellers[answer.index].told(events)
            if delta.text or delta.tokens:
                more = {"timings": timings(answer)} if request.timings_per_token else {}
                out += data(piece_of(answer, delta) | more)
                if "\n" in delta.text:
                    has_new_line.add(answer.index)
            if delta.finish is not None:
                n_open -= 1
                out += data(final(prepared, answer, Delta(finish=delta.finish), answer.index in has_new_line))
        if out:
            yield out


async def llamacpp_whole(prepared: Prepared) -> Json | list[Json]:
    """Return the whole answer in llama.cpp's form: an object, or a list of them for several answers."""
    told = await gathered(prepared.answers, prepared.tellers)
    found = [
        final(prepared, answer, delta, "\n" in delta.text) for answer, delta in zip(prepared.answers, told, strict=True)
    ]
    return found[0] if len(found) == 1 else found


def piece_of(answer: Answer, delta: Delta) -> Json:
    """Return a piece of an answer in llama.cpp's form."""
    found: Json = {
        "index": answer.index,
        "content": delta.text,
        "tokens": delta.tokens,
        "stop": False,
        "id_slot": answer.generation.sequence,
        "tokens_predicted": len(answer.generation.tokens),
        "tokens_evaluated": answer.generation.n_prompt,
    }
    if delta.logprobs:
        found["completion_probabilities"] = delta.logprobs
    if delta.experts:
        found["x_experts"] = delta.experts
    return found


def final(prepared: Prepared, answer: Answer, delta: Delta, has_new_line: bool) -> Json:
    """Return the end of an answer in llama.cpp's form, with what of it was not streamed."""
    generation, request = answer.generation, prepared.request
    found = piece_of(answer, delta) | {
        "tokens": delta.tokens if request.return_tokens else [],
        "stop": True,
        "model": prepared.service.name,
        "generation_settings": generation_settings(prepared, answer),
        "prompt": spelled(prepared.service.model, answer.prompt),
        "has_new_line": has_new_line,
        "truncated": delta.finish == "context",
        "stop_type": STOP_TYPES[delta.finish or "end"],
        "stopping_word": generation.stream.stopped or "",
        "tokens_cached": generation.n_prompt + len(generation.tokens) - 1,
        "timings": timings(answer),
    }
    fields = request.response_fields
    return {name: _nested(found, name) for name in fields} if fields else found


def generation_settings(prepared: Prepared, answer: Answer) -> Json:
    """Return what an answer was made with, by llama.cpp's names."""
    settings, request, model = prepared.settings, prepared.request, prepared.service.model
    sampling = settings.sampling
    biases = dict.fromkeys(end_tokens(model), None) if sampling.ignore_eos else {}
    biases |= {token: None if bias == float("-inf") else bias for token, bias in sampling.logit_bias}
    return sampling_json(sampling) | {
        "seed": answer.generation.sampler.seed,
        "n_predict": settings.n_predict,
        "max_tokens": settings.n_predict,
        "stop": list(settings.stops),
        "stream": bool(request.stream),
        "n_probs": settings.n_logprobs or 0,
        "timings_per_token": bool(request.timings_per_token),
        "logit_bias": [{"token": token, "bias": bias} for token, bias in biases.items()],
        "grammar": sampling.grammar or "",
    }


def _nested(found: Any, path: str) -> Any:
    for name in path.split("/"):
        found = found.get(name) if isinstance(found, dict) else None
    return found
