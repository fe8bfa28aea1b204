"""A JSON schema in, the GBNF grammar of the JSON it allows out.

Understood: types, properties (required first), additionalProperties, items, prefixItems, enum, const, anyOf, oneOf,
references within the schema, and lengths. What else restricts is refused, since it could not be kept.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..formats.errors import EngineError

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
}
COMMA = '"," space'
TYPES = {"string": "string", "integer": "whole", "number": "number", "boolean": "boolean", "null": "nothing"}
UNSUPPORTED = (
    *("pattern", "patternProperties", "propertyNames", "minProperties", "maxProperties", "dependentRequired"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "uniqueItems", "contains"),
    *("not", "if", "then", "else", "unevaluatedItems", "unevaluatedProperties"),
)


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
        for keyword in UNSUPPORTED:
            if keyword in schema:
                raise EngineError(f"the JSON schema: {keyword} is not supported; leave it out")
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "const" in schema:
            return literal(schema["const"])
        if "enum" in schema:
            return group(" | ".join(literal(value) for value in schema["enum"]))
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return group(" | ".join(self.of(choice) for choice in schema[keyword]))
        if "allOf" in schema:
            if len(schema["allOf"]) != 1:
                raise EngineError("the JSON schema: allOf of several schemas is not supported; merge them")
            return self.of(schema["allOf"][0])
        return self._typed(schema)

    def _typed(self, schema: Mapping[str, Any]) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            return group(" | ".join(self.of({**schema, "type": each}) for each in kind))
        if kind == "object" or (kind is None and ("properties" in schema or "additionalProperties" in schema)):
            return self._object(schema)
        if kind == "array" or (kind is None and ("items" in schema or "prefixItems" in schema)):
            return self._array(schema)
        if kind == "string" and ("minLength" in schema or "maxLength" in schema):
            return rf'"\"" character{repetition(schema, "minLength", "maxLength")} "\""'
        if kind is None:
            return "value"
        if kind not in TYPES:
            raise EngineError(f"the JSON schema: there is no type {kind!r}")
        return TYPES[kind]

    def _object(self, schema: Mapping[str, Any]) -> str:
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
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
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise EngineError(f"the JSON schema: {reference!r} is not a reference within the schema (#/...)")
        if reference in self._names:
            return self._names[reference]
        target: Any = self.document
        for step in reference.removeprefix("#").strip("/").split("/") if reference != "#" else ():
            step = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or step not in target:
                raise EngineError(f"the JSON schema: {reference!r} leads nowhere")
            target = target[step]
        name = self._names[reference] = f"reference-{len(self._names) + 1}"
        self.named[name] = self.of(target)
        return name


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
    text = json.dumps(value, ensure_ascii=False).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def group(alternatives: str) -> str:
    """Return an expression in parentheses."""
    return f"({alternatives})"
