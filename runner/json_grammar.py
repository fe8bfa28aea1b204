"""A JSON schema in, the GBNF grammar of the JSON it allows out.

What llama.cpp's own converter keeps is kept (common/json-schema-to-grammar.cpp): types, properties (required first),
additionalProperties, items, prefixItems, enum, const, anyOf, oneOf, allOf of objects, references within the schema,
lengths, anchored patterns, bounds of integers, and the formats date, time, date-time and uuid. What it drops is
refused.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..formats.errors import EngineError
from .json_numbers import integers_between
from .json_pattern import literal as quoted
from .json_pattern import pattern_expression

# By RFC 8259; one optional space where JSON allows any white space, so that no answer is spent on it.
BASICS = {
    "space": '" "?',
    "character": r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    "string": r'"\"" character* "\""',
    "whole": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'whole ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?',
    "boolean": '"true" | "false"',
    "nothing": '"null"',
    "object": '"{" space (string ":" space value ("," space string ":" space value)*)? space "}"',
    "array": '"[" space (value ("," space value)*)? space "]"',
    "value": "object | array | string | number | boolean | nothing",
    # RFC 3339, as far as llama.cpp takes it
    "date": '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [1-2] [0-9] | "3" [0-1])',
    "time": 'hour ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{3})? ("Z" | [+-] hour ":" [0-5] [0-9])',
    "hour": '([01] [0-9] | "2" [0-3])',
    "uuid": '[0-9a-fA-F]{8} ("-" [0-9a-fA-F]{4}){3} "-" [0-9a-fA-F]{12}',
}
COMMA = '"," space'
TYPES = {"string": "string", "integer": "whole", "number": "number", "boolean": "boolean", "null": "nothing"}
FORMATS = {"date": "date", "time": "time", "date-time": 'date "T" time'}
FORMATS |= dict.fromkeys(("uuid", "uuid1", "uuid2", "uuid3", "uuid4", "uuid5"), "uuid")
# What only describes; anything else that is not understood would be dropped, and is refused.
ANNOTATIONS = {
    *("title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions"),
    *("deprecated", "readOnly", "writeOnly", "$anchor"),
}
OF_OBJECTS = {"properties", "required", "additionalProperties"}
OF_ARRAYS = {"items", "prefixItems", "minItems", "maxItems"}
OF_STRINGS = {"minLength", "maxLength", "pattern", "format"}
OF_INTEGERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
OF_TYPES = {"object": OF_OBJECTS, "array": OF_ARRAYS, "string": OF_STRINGS, "integer": OF_INTEGERS}
CHOOSING = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
KNOWN = ANNOTATIONS | OF_OBJECTS | OF_ARRAYS | OF_STRINGS | OF_INTEGERS | {"type", *CHOOSING}


def json_schema_grammar(schema: str) -> str:
    """Return the grammar of a schema given as JSON; {} is any object, as in llama.cpp.

    Raises EngineError for a schema that is broken, or asks for what a grammar cannot keep.
    """
    try:
        document = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise EngineError(f"the JSON schema is no JSON: {error}") from None
    rules = Rules(document)
    try:
        root = rules.of(document if document != {} else {"type": "object"})
    except RecursionError:
        raise EngineError("the JSON schema nests too deep") from None
    lines = {"root": root, **rules.named, **BASICS}
    return "\n".join(f"{name} ::= {body}" for name, body in lines.items()) + "\n"


class Rules:
    """Turns schemas into expressions; what is referred to becomes a named rule, so that it may refer to itself."""

    def __init__(self, document: Any) -> None:
        """Resolve references within `document`."""
        self.document = document
        self.named: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def of(self, schema: Any) -> str:
        """Return the expression for one schema."""
        if schema is True:
            return "value"
        if not isinstance(schema, dict):
            raise EngineError(f"the JSON schema is broken: a schema is an object, not {json.dumps(schema)[:40]}")
        for keyword in schema:
            if keyword not in KNOWN and not keyword.startswith("x-"):
                raise EngineError(f"the JSON schema: {keyword} is not supported; leave it out")
        chosen = next((keyword for keyword in CHOOSING if keyword in schema), None)
        if chosen is None:
            return self._typed(schema)
        _refuse_beside(schema, chosen)
        if chosen == "$ref":
            return self._reference(schema["$ref"])
        if chosen == "allOf":
            return self.of(self._merged(_schemas(schema, "allOf"), schema))
        if chosen in ("anyOf", "oneOf"):
            return group(" | ".join(self.of(choice) for choice in _schemas(schema, chosen)))
        values = [schema["const"]] if chosen == "const" else _schemas(schema, "enum")
        allowed = [value for value in values if _has_type(value, schema.get("type"))]
        if not allowed:
            raise EngineError(f"the JSON schema: no value of {chosen} has the type {schema.get('type')!r}")
        return group(" | ".join(literal(value) for value in allowed))

    def _typed(self, schema: Mapping[str, Any]) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            return group(" | ".join(self.of({**schema, "type": each}) for each in kind))
        if kind is None:
            kind = next((name for name, words in OF_TYPES.items() if words & schema.keys()), None)
        if kind is None:
            return "value"
        if kind == "object":
            return self._object(schema)
        if kind == "array":
            return self._array(schema)
        if not isinstance(kind, str) or kind not in TYPES:
            raise EngineError(f"the JSON schema: there is no type {kind!r}")
        if kind == "string":
            return _string(schema)
        bounds = OF_INTEGERS & schema.keys()
        if bounds and kind == "number":
            raise EngineError(f"the JSON schema: {min(bounds)} is supported for integers only; leave it out")
        return _integer(schema) if bounds and kind == "integer" else TYPES[kind]

    def _merged(self, parts: Sequence[Any], whole: Mapping[str, Any]) -> dict[str, Any]:
        """Return one object's schema for all of several objects'."""
        if len(parts) == 1 and not (whole.keys() - ANNOTATIONS - {"allOf", "type"}):
            return parts[0]
        merged: dict[str, Any] = {"type": "object", "properties": {}, "required": []}
        for part in [*parts, {key: value for key, value in whole.items() if key != "allOf"}]:
            found = self._target(part["$ref"]) if isinstance(part, dict) and "$ref" in part else part
            if not isinstance(found, dict) or found.keys() - ANNOTATIONS - OF_OBJECTS - {"type"}:
                raise EngineError("the JSON schema: allOf is supported for objects only; merge the schemas")
            describes_objects = found.get("type") == "object" or bool(OF_OBJECTS & found.keys())
            if (part in parts and not describes_objects) or found.get("type", "object") != "object":
                raise EngineError("the JSON schema: allOf is supported for objects only; merge the schemas")
            for name, value in found.get("properties", {}).items():
                if merged["properties"].setdefault(name, value) != value:
                    raise EngineError(f"the JSON schema: allOf describes {name!r} twice; merge the schemas")
            merged["required"] += found.get("required", [])
            if found.get("additionalProperties") not in (None, True):
                merged["additionalProperties"] = found["additionalProperties"]
        return merged

    def _object(self, schema: Mapping[str, Any]) -> str:
        properties, extra = dict(schema.get("properties", {})), schema.get("additionalProperties")
        for name in schema.get("required", ()):
            if name not in properties and extra is False:
                raise EngineError(f"the JSON schema: {name!r} is required, but additionalProperties forbids it")
            properties.setdefault(name, True if extra is None else extra)
        if not properties and extra in (None, True):
            return "object"
        required = [name for name in properties if name in schema.get("required", ())]
        pairs = {name: f'{literal(name)} ":" space {self.of(value)}' for name, value in properties.items()}
        members = [(pairs[name], True) for name in required]
        members += [(pairs[name], False) for name in properties if name not in required]
        rest = f'string ":" space {self.of(extra)}' if extra not in (None, False) else ""
        return f'"{{" space {listed(members, rest)} space "}}"'

    def _array(self, schema: Mapping[str, Any]) -> str:
        first = [self.of(item) for item in schema.get("prefixItems", ())]
        closed = schema.get("items", not first) is False
        low, high = limits(schema, "minItems", "maxItems")
        low, high = max(low - len(first), 0), None if high is None else high - len(first)
        body = f" {COMMA} ".join(first)
        if not closed and (high is None or high > 0):
            item = self.of(schema.get("items", True))
            if first:
                body += f" ({COMMA} {item}){{{low},{'' if high is None else high}}}"
            else:
                more = f"{item} ({COMMA} {item}){{{max(low - 1, 0)},{'' if high is None else high - 1}}}"
                body = more if low else f"({more})?"
        return f'"[" space {body} space "]"'

    def _reference(self, reference: Any) -> str:
        if not isinstance(reference, str) or reference not in self._names:
            target = self._target(reference)
            name = self._names[reference] = f"reference-{len(self._names) + 1}"
            self.named[name] = self.of(target)
        return self._names[reference]

    def _target(self, reference: Any) -> Any:
        """Return the schema that a reference means."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise EngineError(f"the JSON schema: {reference!r} is not a reference within the schema (#/...)")
        target: Any = self.document
        for step in reference.removeprefix("#").strip("/").split("/") if reference != "#" else ():
            step = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or step not in target:
                raise EngineError(f"the JSON schema: {reference!r} leads nowhere")
            target = target[step]
        return target


def _refuse_beside(schema: Mapping[str, Any], chosen: str) -> None:
    """Refuse what would be dropped because another keyword of the same schema decides."""
    allowed = ANNOTATIONS | {chosen} | ({"type"} if chosen != "$ref" else set())
    allowed |= OF_OBJECTS if chosen == "allOf" else set()
    others = [keyword for keyword in schema if keyword not in allowed and not keyword.startswith("x-")]
    if others:
        raise EngineError(f"the JSON schema: {others[0]} beside {chosen} is not supported; merge them or leave it out")


def _schemas(schema: Mapping[str, Any], keyword: str) -> list[Any]:
    found = schema[keyword]
    if not isinstance(found, list) or not found:
        raise EngineError(f"the JSON schema: {keyword} is a list of at least one, not {json.dumps(found)[:40]}")
    return found


def _has_type(value: Any, kind: Any) -> bool:
    kinds = kind if isinstance(kind, list) else [kind]
    names = {bool: {"boolean"}, int: {"integer", "number"}, float: {"number"}, str: {"string"}, type(None): {"null"}}
    names |= {dict: {"object"}, list: {"array"}}
    whole = {"integer"} if isinstance(value, float) and value.is_integer() else set()
    return kind is None or bool((names[type(value)] | whole) & set(kinds))


def _string(schema: Mapping[str, Any]) -> str:
    """Return the expression of a string; only one of its restrictions can be kept."""
    ways = [("pattern",), ("format",), ("minLength", "maxLength")]
    given = [keywords[0] for keywords in ways if any(keyword in schema for keyword in keywords)]
    if len(given) > 1:
        raise EngineError(f"the JSON schema: {given[1]} beside {given[0]} is not supported; leave one out")
    if "pattern" in schema:
        return rf'"\"" {pattern_expression(str(schema["pattern"]))} "\""'
    if "format" in schema:
        known = FORMATS.get(schema["format"]) if isinstance(schema["format"], str) else None
        if known is None:
            names = "date, time, date-time and uuid"
            raise EngineError(f"the JSON schema: the format {schema['format']!r} is not supported, only {names} are")
        return rf'"\"" {known} "\""'
    if not given:
        return "string"
    return rf'"\"" character{repetition(schema, "minLength", "maxLength")} "\""'


def _integer(schema: Mapping[str, Any]) -> str:
    """Return the expression of an integer between bounds."""
    for keyword in OF_INTEGERS & schema.keys():
        value = schema[keyword]
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value != int(value):
            raise EngineError(f"the JSON schema: {keyword} of an integer is an integer, not {json.dumps(value)[:40]}")
    lows = [int(schema[key]) + more for key, more in (("minimum", 0), ("exclusiveMinimum", 1)) if key in schema]
    highs = [int(schema[key]) - less for key, less in (("maximum", 0), ("exclusiveMaximum", 1)) if key in schema]
    low, high = max(lows, default=None), min(highs, default=None)
    if low is not None and high is not None and low > high:
        raise EngineError(f"the JSON schema: there is no integer between {low} and {high}")
    return integers_between(low, high)


def listed(members: Sequence[tuple[str, bool]], rest: str, started: bool = False) -> str:
    """Return members between commas: (expression, must it be there), then any number of `rest`.

    `started` says that something stands before them, so that each begins with a comma.
    """
    if not members:
        more = f"({COMMA} {rest})*"
        return (more if started else f"({rest} {more})?") if rest else ""
    (expression, needed), others = members[0], members[1:]
    if started:
        one = f"{COMMA} {expression}"
        return f"{one if needed else f'({one})?'} {listed(others, rest, True)}".strip()
    with_it = f"{expression} {listed(others, rest, True)}".strip()
    if needed:
        return with_it
    without_it = listed(others, rest)
    return f"({with_it} | {without_it})" if without_it else f"({with_it})?"


def limits(schema: Mapping[str, Any], least: str, most: str) -> tuple[int, int | None]:
    """Return the bounds of a length. Raises EngineError when there is nothing between them."""
    low, high = schema.get(least, 0), schema.get(most)
    if not isinstance(low, int) or not isinstance(high, (int, type(None))) or low < 0 or (high or low) < low:
        raise EngineError(f"the JSON schema: there is no length between {low} and {high}")
    return low, high


def repetition(schema: Mapping[str, Any], least: str, most: str) -> str:
    """Return GBNF's {least,most}."""
    low, high = limits(schema, least, most)
    return f"{{{low},{'' if high is None else high}}}"


def literal(value: Any) -> str:
    """Return the expression of one JSON value, spelled as json.dumps does."""
    return quoted(json.dumps(value, ensure_ascii=False))


def group(alternatives: str) -> str:
    """Return an expression in parentheses."""
    return f"({alternatives})"
