"""Sampling fields of a request in, the runner's sampling options out.

What is not given is as the server was started.
"""

from dataclasses import replace
from typing import Any

import msgspec

from ..runner.json_grammar import json_schema_grammar
from ..runner.model import Model, tokenize
from ..runner.sampling import SamplingOptions, sampler_name
from .errors import ApiError
from .requests import Bias, Sampling

# Fields that SamplingOptions calls the same.
SAME = (
    *("dynatemp_range", "dynatemp_exponent", "top_p", "min_p", "typical_p", "top_n_sigma", "xtc_probability"),
    *("xtc_threshold", "repeat_penalty", "presence_penalty", "frequency_penalty", "dry_multiplier", "dry_base"),
    *("dry_allowed_length", "mirostat", "mirostat_tau", "mirostat_eta", "ignore_eos"),
)


def sampling_of(fields: Sampling, defaults: SamplingOptions, model: Model, n_ctx: int) -> SamplingOptions:
    """Return sampling options. Raises ApiError and EngineError for values that make no sense."""
    given: dict[str, Any] = {name: value for name in SAME if (value := getattr(fields, name)) is not None}
    if fields.temperature is not None:
        given["temp"] = fields.temperature
    if fields.top_k is not None:
        given["top_k"] = max(fields.top_k, 0)
    for name in ("repeat_last_n", "dry_penalty_last_n"):
        value = getattr(fields, name)
        if value is not None:
            given[name] = n_ctx if value < 0 else value
    if fields.dry_sequence_breakers is not None:
        given["dry_sequence_breakers"] = tuple(fields.dry_sequence_breakers)
    if fields.seed is not None:
        given["seed"] = None if fields.seed == -1 else fields.seed % 2**32
    if fields.samplers is not None:
        given["samplers"] = _samplers(fields.samplers)
    if fields.logit_bias:
        given["logit_bias"] = _biases(fields.logit_bias, model)
    if fields.json_schema is not None and fields.grammar:
        raise ApiError(400, "give grammar or json_schema, not both", "grammar")
    if fields.grammar:
        given["grammar"] = fields.grammar
    if fields.json_schema is not None:
        given["grammar"] = schema_grammar(fields.json_schema)
    return replace(defaults, **given)


def schema_grammar(schema: Any) -> str:
    """Return the grammar of a JSON schema. Raises EngineError for one that cannot be kept."""
    return json_schema_grammar(msgspec.json.encode(schema).decode())


def _samplers(given: list[str] | str) -> tuple[str, ...]:
    names = given.split(";") if isinstance(given, str) else given
    found = {name: sampler_name(name) for name in names}
    if unknown := [name for name, known in found.items() if known is None]:
        raise ApiError(400, f"there is no sampler {unknown[0][:40]!r}", "samplers")
    return tuple(name for name in found.values() if name)


def _biases(given: Bias, model: Model) -> tuple[tuple[int, float], ...]:
    """Return (token, bias): OpenAI gives an object of ids, llama.cpp pairs of an id or a text with a bias or false."""
    pairs = list(given.items()) if isinstance(given, dict) else given
    found: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ApiError(400, "logit_bias is an object of token ids, or a list of [token, bias]", "logit_bias")
        token, bias = pair
        if bias is False:
            bias = float("-inf")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)):
            raise ApiError(400, "a bias is a number, or false", "logit_bias")
        for each in _tokens(token, model):
            found[each] = float(bias)
    return tuple(found.items())


def _tokens(token: Any, model: Model) -> list[int]:
    if isinstance(token, str) and not token.lstrip("-").isdecimal():
        return tokenize(model, token, add_special=False)
    if isinstance(token, bool) or not isinstance(token, (int, str)):
        raise ApiError(400, "a token is an id or a text", "logit_bias")
    if len(str(token)) > 12:
        raise ApiError(400, f"logit bias: there is no token {str(token)[:12]}...", "logit_bias")
    return [int(token)]
