"""JSON schemas: what is kept is kept as llama.cpp's own converter keeps it, and what that one drops is refused."""

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moe_gguf.formats.errors import EngineError
from moe_gguf.formats.llamacpp import llama
from moe_gguf.runner.json_grammar import json_schema_grammar
from moe_gguf.runner.json_numbers import integers_between
from moe_gguf.runner.model import Model, is_end
from moe_gguf.runner.sampling import CANDIDATE, candidate_array, grammar_sampler

from .json_schemas import BETTER, DROPPED, KEPT
from .tiny_gguf import vocabulary

THEIRS = json.loads((Path(__file__).parent / "golden" / "json_schemas.json").read_text("utf-8"))


def accepts(model: Model, grammar: str, text: str) -> bool:
    """Tell whether llama.cpp takes a text as one that a grammar produces, byte by byte, and then an end."""
    sampler, tokens = grammar_sampler(model, grammar), vocabulary()[0]
    end = next(token for token in range(model.n_vocab) if is_end(model, token))
    try:
        for token in [*(tokens.index(f"<0x{byte:02X}>") for byte in text.encode()), end]:
            array = candidate_array(one := np.array([(token, 1.0, 0.0)], CANDIDATE))
            llama().llama_sampler_apply(sampler, ctypes.byref(array))
            if not np.isfinite(one["logit"][0]):
                return False
            if token != end:
                llama().llama_sampler_accept(sampler, token)
        return True
    finally:
        llama().llama_sampler_free(sampler)


def spelled(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize(("schema", "good", "bad"), KEPT, ids=[json.dumps(schema)[:60] for schema, _, _ in KEPT])
def test_a_schema_is_kept_as_llama_cpp_keeps_it(tiny: Model, schema: Any, good: list[Any], bad: list[Any]) -> None:
    ours, theirs = json_schema_grammar(json.dumps(schema)), THEIRS[json.dumps(schema)]
    for value in good:
        assert accepts(tiny, ours, spelled(value)) and accepts(tiny, theirs, spelled(value)), value
    for value in bad:
        assert not accepts(tiny, ours, spelled(value)) and not accepts(tiny, theirs, spelled(value)), value


@pytest.mark.parametrize(("schema", "good", "bad"), BETTER)
def test_a_schema_is_kept_where_llama_cpp_errs(tiny: Model, schema: Any, good: list[Any], bad: list[Any]) -> None:
    grammar = json_schema_grammar(json.dumps(schema))
    assert all(accepts(tiny, grammar, spelled(value)) for value in good)
    assert not any(accepts(tiny, grammar, spelled(value)) for value in bad)


@pytest.mark.parametrize(("schema", "match"), DROPPED, ids=[match[:40] for _, match in DROPPED])
def test_what_llama_cpp_drops_is_refused(schema: Any, match: str) -> None:
    with pytest.raises(EngineError, match=match) as caught:
        json_schema_grammar(json.dumps(schema))
    assert "\n" not in str(caught.value)


def test_required_names_need_no_description(tiny: Model) -> None:
    grammar = json_schema_grammar('{"type": "object", "required": ["a"]}')
    assert accepts(tiny, grammar, '{"a":1}') and not accepts(tiny, grammar, "{}")


@given(st.integers(-12_000, 12_000), st.integers(0, 3_000), st.data())
def test_bounds_of_integers(tiny: Model, low: int, width: int, data: st.DataObject) -> None:
    grammar = f"root ::= {integers_between(low, low + width)}\n"
    inside = data.draw(st.integers(low, low + width))
    outside = data.draw(st.integers(-13_000, 16_000).filter(lambda n: not low <= n <= low + width))
    assert accepts(tiny, grammar, str(inside)) and not accepts(tiny, grammar, str(outside))
