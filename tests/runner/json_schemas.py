"""Schemas that llama.cpp's converter keeps whole, and values that they allow and forbid."""

from typing import Any

# schema, values that it allows, values that it forbids
KEPT: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({"type": "string", "format": "date"}, ["2026-11-25"], ["2026-13-25", "yesterday", ""]),
    ({"type": "string", "format": "time"}, ["23:59:00Z", "00:00:00.125+01:30"], ["24:00:00Z", "12:00"]),
    ({"type": "string", "format": "date-time"}, ["2026-11-25T11:40:30Z"], ["2026-11-25"]),
    ({"type": "string", "format": "uuid"}, ["0f8fad5b-d9cb-469f-a165-70867728950e"], ["0f8fad5b"]),
    ({"format": "uuid4"}, ["0f8fad5b-d9cb-469f-a165-70867728950e"], ["x"]),
    ({"type": "string", "pattern": "^[a-c]+x?$"}, ["abcx", "a"], ["", "x", "abd"]),
    ({"type": "string", "pattern": "^(ab|c){2,3}[0-9]$"}, ["abc7", "ccab0"], ["ab7", "ccccc1"]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "é\n"], ["a", "abcd"]),
    ({"type": "integer", "minimum": 3, "maximum": 125}, [3, 9, 10, 99, 100, 125], [2, 126, 0, -3, 1000]),
    ({"type": "integer", "minimum": -12, "maximum": 7}, [-12, -9, -1, 0, 7], [-13, 8, 70]),
    ({"type": "integer", "maximum": -5}, [-5, -10, -99], [-4, 0, 5]),
    ({"type": "integer", "minimum": 1234}, [1234, 1235, 9999, 12340], [1233, 999, -1234]),
    ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10}, [1, 9], [0, 10]),
    (
        {
            "allOf": [
                {"properties": {"a": {"type": "null"}}, "required": ["a"]},
                {"properties": {"b": {"const": 1}}, "required": ["b"]},
            ]
        },
        [{"a": None, "b": 1}],
        [{"a": None}, {"c": 1}],
    ),
    ({"type": ["integer", "null"], "minimum": 5, "maximum": 6}, [5, 6, None], ["5"]),
    ({"enum": ["a", 1, None]}, ["a", 1, None], ["b", 2]),
    ({"const": 'a"\\\n'}, ['a"\\\n'], ["a"]),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}, [[True], [True, False]], [[], [1]]),
    ({"anyOf": [{"type": "boolean"}, {"const": 1}]}, [True, 1], [None]),
]
# what llama.cpp's converter gets wrong: quotes in patterns unescaped, \\d unknown, everything in allOf required
BETTER: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({"type": "string", "pattern": '^"[^x]\\\\$'}, ['"a\\'], ['"x\\', "a"]),
    ({"type": "string", "pattern": "^\\d\\w?\\s.$"}, ["1\té", "1_ a"], ["a a", "1 \n"]),
    ({"allOf": [{"properties": {"a": {"const": 1}}}, {"required": ["a"]}]}, [{"a": 1}], [{}, {"a": 2}]),
]
# schemas of which llama.cpp drops a part: the keyword that is named
DROPPED: list[tuple[dict[str, Any], str]] = [
    ({"type": "string", "format": "email"}, "the format 'email' is not supported"),
    ({"type": "string", "pattern": "a+"}, "must begin with"),
    ({"type": "string", "pattern": "^(?=a)b$"}, "not supported: assert"),
    ({"type": "string", "pattern": "^(a)\\1$"}, "a reference to a group"),
    ({"type": "string", "pattern": "^a$b$"}, "an anchor inside"),
    ({"type": "string", "pattern": "^[a$"}, "is broken"),
    ({"type": "string", "pattern": "^a$", "minLength": 3}, "minLength beside pattern"),
    ({"type": "number", "minimum": 3}, "minimum is supported for integers only"),
    ({"type": "integer", "multipleOf": 3}, "multipleOf is not supported"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems is not supported"),
    ({"type": "object", "minProperties": 1}, "minProperties is not supported"),
    ({"not": {"type": "null"}}, "not is not supported"),
    ({"anyOf": [{"type": "null"}], "properties": {}}, "properties beside anyOf"),
    ({"$ref": "#/$defs/a", "minimum": 1, "$defs": {"a": {}}}, "minimum beside [$]ref"),
    ({"allOf": [{"type": "string"}, {"minLength": 3}]}, "allOf is supported for objects only"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "no integer between 3 and 2"),
    ({"type": "object", "required": ["a"], "additionalProperties": False}, "'a' is required, but"),
]
