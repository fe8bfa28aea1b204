"""Bodies of requests in, typed records out: every field checked once, here, by msgspec.

The same records are the schemas of /openapi.json. Unknown fields are passed over, as OpenAI and llama.cpp do.
"""

from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from .errors import ApiError

Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-100, le=100)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Stops = Annotated[list[Annotated[str, Meta(max_length=1000)]], Meta(max_length=64)]
Json = dict[str, Any]
Bias = dict[str, Annotated[float, Meta(ge=-1e9, le=1e9)]] | list[Any]


class Sampling(msgspec.Struct, kw_only=True):
    """How tokens are chosen: OpenAI's fields and llama.cpp's, by their names."""

    temperature: Annotated[float, Meta(ge=0, le=1000)] | None = None
    dynatemp_range: Annotated[float, Meta(ge=0, le=1000)] | None = None
    dynatemp_exponent: Annotated[float, Meta(ge=0, le=1000)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    top_n_sigma: Annotated[float, Meta(ge=-1, le=1e6)] | None = None
    xtc_probability: Share | None = None
    xtc_threshold: Share | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    repeat_last_n: Annotated[int, Meta(ge=-1, le=2**20)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    dry_multiplier: Annotated[float, Meta(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Meta(ge=0, le=100)] | None = None
    dry_allowed_length: Annotated[int, Meta(ge=0, le=2**20)] | None = None
    dry_penalty_last_n: Annotated[int, Meta(ge=-1, le=2**20)] | None = None
    dry_sequence_breakers: Stops | None = None
    mirostat: Annotated[int, Meta(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[float, Meta(ge=0, le=1000)] | None = None
    mirostat_eta: Annotated[float, Meta(ge=0, le=1000)] | None = None
    samplers: list[str] | str | None = None
    seed: Seed | None = None
    logit_bias: Bias | None = None
    ignore_eos: bool | None = None
    grammar: Annotated[str, Meta(max_length=200_000)] | None = None
    json_schema: Json | bool | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    """What a stream carries beside the answer."""

    include_usage: bool | None = None


class JsonSchema(msgspec.Struct, kw_only=True):
    """A schema with OpenAI's wrapping."""

    name: str | None = None
    schema: Json | bool | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    """The form of an answer; llama.cpp takes a `schema` beside json_object too."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None
    schema: Json | None = None


class FunctionName(msgspec.Struct, kw_only=True):
    """A function by its name."""

    name: str


class NamedTool(msgspec.Struct, kw_only=True):
    """The tool that an answer must call."""

    function: FunctionName
    type: Literal["function"] = "function"


class Generating(Sampling, kw_only=True):
    """What all requests that make an answer share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | Stops | None = None
    user: str | None = None
    cache_prompt: bool | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    sse_ping_interval: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    t_max_predict_ms: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    x_experts: bool | Literal["sum", "layers"] | None = None
    x_only_expert: Annotated[int, Meta(ge=0, le=4095)] | None = None


class ChatRequest(Generating, kw_only=True):
    """POST /v1/chat/completions. `messages` are read by the runner, which names what is wrong in them."""

    messages: Annotated[list[Json], Meta(min_length=1, max_length=10_000)]
    max_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    n_predict: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Json], Meta(max_length=256)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Json | None = None
    reasoning_format: Literal["auto", "none", "deepseek", "deepseek-legacy"] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


Tokens = list[int]
Prompt = str | list[Any] | Json


class CompletionRequest(Generating, kw_only=True):
    """POST /v1/completions and /completion: a text, tokens, a mixture of both, or several of these."""

    prompt: Prompt
    max_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    n_predict: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    n_probs: Annotated[int, Meta(ge=0, le=100)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    return_tokens: bool | None = None
    response_fields: list[str] | None = None


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings."""

    input: Prompt
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None
    user: str | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /tokenize."""

    content: str | list[Any] = ""
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False
    model: str | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    tokens: Annotated[list[Annotated[int, Meta(ge=0, le=2**31 - 1)]], Meta(max_length=1_000_000)] = []
    model: str | None = None


Request = TypeVar("Request")


@cache
def decoder(kind: type[Request]) -> msgspec.json.Decoder[Request]:
    """Return what reads one kind of record."""
    return msgspec.json.Decoder(kind)


def decode(body: bytes, kind: type[Request]) -> Request:
    """Return a body as a record. Raises ApiError that names the field."""
    try:
        return decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        param = where.removesuffix("`").removeprefix(".") or None
        raise ApiError(400, f"{param or 'the body'}: {what}", param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise ApiError(400, f"the body is no JSON: {error}") from None
    except RecursionError:
        raise ApiError(400, "the body nests too deep") from None
