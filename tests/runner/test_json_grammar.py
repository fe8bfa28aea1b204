"""Grammars of JSON schemas, run by llama.cpp: what it generates is JSON of that schema."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.generation import generate
from moe_gguf.runner.json_grammar import json_schema_grammar
from moe_gguf.runner.model import Model
from moe_gguf.runner.sampling import SamplingOptions

from ..loaded_models import ONE_THREAD

SHORT = {"type": "string", "maxLength": 3}


@pytest.fixture(scope="module")
def engine(tiny: Model) -> Iterator[Engine]:
    with Engine(tiny, ONE_THREAD) as engine:
        yield engine


def examples(engine: Engine, schema: Any, count: int = 12, temp: float = 50) -> list[Any]:
    """Generate values of a schema."""
    grammar = json_schema_grammar(json.dumps(schema))
    found = []
    for seed in range(count):
        sampling = SamplingOptions(seed=seed, temp=temp, top_k=0, top_p=1, min_p=0, grammar=grammar)
        pieces = list(generate(engine, [1, 5], sampling, n_predict=400))
        assert pieces[-1].finish == "end"
        found.append(json.loads("".join(piece.text for piece in pieces)))
    return found


def test_required_properties_are_there_and_optional_ones_may_be(engine: Engine) -> None:
    flag = {"type": "boolean"}
    properties = {"a": flag, "b": flag, "c": {"type": "null"}, "d": flag}
    schema = {"type": "object", "properties": properties, "required": ["b", "c"]}
    found = examples(engine, schema, 24)
    assert all({"b", "c"} <= set(value) <= {"a", "b", "c", "d"} for value in found)
    assert {"a" in value for value in found} == {"d" in value for value in found} == {True, False}
    none_required = examples(engine, {"type": "object", "properties": properties}, 24)
    assert all(set(value) <= set(properties) for value in none_required)
    assert len({tuple(sorted(value)) for value in none_required}) > 4


def test_other_properties_where_they_are_allowed(engine: Engine) -> None:
    found = examples(engine, {"type": "object", "additionalProperties": {"enum": [7]}}, 6, temp=1.5)
    assert all(set(value.values()) <= {7} for value in found)


@pytest.mark.parametrize(("least", "most"), [(0, 0), (0, 2), (1, 1), (2, 3)])
def test_lengths_of_arrays(engine: Engine, least: int, most: int) -> None:
    schema = {"type": "array", "items": {"enum": [1, 2]}, "minItems": least, "maxItems": most}
    found = examples(engine, schema)
    assert {len(value) for value in found} <= set(range(least, most + 1))
    assert all(set(value) <= {1, 2} for value in found)


def test_lengths_of_strings(engine: Engine) -> None:
    found = examples(engine, {"type": "string", "minLength": 2, "maxLength": 4})
    # random bytes may be no character: such are shown as several U+FFFD
    assert all(2 <= len(value) <= 4 or "\ufffd" in value for value in found)


def test_tuples(engine: Engine) -> None:
    found = examples(engine, {"prefixItems": [{"type": "boolean"}, SHORT], "items": False})
    assert all(isinstance(one, bool) and isinstance(two, str) for one, two in found)
    longer = examples(engine, {"prefixItems": [{"const": 1}], "items": {"const": 2}, "maxItems": 3, "minItems": 2})
    assert all(value in ([1, 2], [1, 2, 2]) for value in longer)


@pytest.mark.parametrize("value", ['a"b\\c\n\té', 1.5, None, {"x": [1, "\x7f"]}, "", True])
def test_constants_are_spelled_exactly(engine: Engine, value: Any) -> None:
    assert examples(engine, {"const": value}, 2) == [value, value]


def test_choices_and_references(engine: Engine) -> None:
    schema = {
        "$defs": {"leaf": {"enum": ["x", "y"]}, "tree": {"anyOf": [{"$ref": "#/$defs/leaf"}, {"type": ["null"]}]}},
        "type": "array",
        "items": {"$ref": "#/$defs/tree"},
        "minItems": 3,
        "maxItems": 3,
    }
    assert {each for value in examples(engine, schema) for each in value} == {"x", "y", None}


def test_a_schema_may_refer_to_itself(engine: Engine) -> None:
    schema = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"const": 0}, {"$ref": "#"}]}},
        "required": ["next"],
        "title": "ignored",
    }
    for value in examples(engine, schema, 6):
        while value != 0:
            assert set(value) == {"next"}
            value = value["next"]


@pytest.mark.parametrize("schema", [{"type": "integer"}, {"type": "number"}])
def test_numbers(engine: Engine, schema: dict[str, str]) -> None:
    for value in examples(engine, schema, 20):
        assert isinstance(value, int) or schema["type"] == "number"
