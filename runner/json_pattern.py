"""A regular expression of a JSON schema in, a GBNF expression for the inside of a JSON string out.

Patterns that llama.cpp's converter drops (common/json-schema-to-grammar.cpp, _pattern_to_rule) are refused: those that
are not anchored at both ends, look around, or refer back.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from ..formats.errors import EngineError

# What stands for itself in a JSON string; the others are escaped there.
PLAIN = r'"\\\x7F\x00-\x1F'
ESCAPED = (0x08, 0x0C, 0x0A, 0x0D, 0x09, 0x22, 0x5C)
DIGITS, WORD, SPACE = ((48, 57),), ((48, 57), (65, 90), (95, 95), (97, 122)), ((32, 32), (9, 10), (13, 13))
CLASSES = {"CATEGORY_DIGIT": DIGITS, "CATEGORY_WORD": WORD, "CATEGORY_SPACE": SPACE}
LAST = 0x10FFFF
MOST_REPEATS = 2000
Ranges = list[tuple[int, int]]


def pattern_expression(pattern: str) -> str:
    """Return the expression. Raises EngineError for what a grammar cannot keep."""
    parser: Any = re._parser  # type: ignore[attr-defined]  # Python's own parser of patterns has no public name
    before = pattern.removesuffix("$")
    escaped = (len(before) - len(before.rstrip("\\"))) % 2 == 1
    if not pattern.startswith("^") or before == pattern or escaped:
        raise EngineError(f"the JSON schema: the pattern {pattern[:60]!r} must begin with ^ and end with $")
    try:
        return sequence(parser.parse(pattern[1:-1], re.ASCII))
    except (re.error, OverflowError, RecursionError) as error:
        raise EngineError(f"the JSON schema: the pattern {pattern[:60]!r} is broken: {error}") from None
    except Unsupported as error:
        raise EngineError(f"the JSON schema: the pattern {pattern[:60]!r} is not supported: {error}") from None


class Unsupported(Exception):
    """A part of a pattern that a grammar cannot keep."""


def sequence(items: Any) -> str:
    """Return the expression of things that follow each other."""
    return " ".join(expression(str(kind), value) for kind, value in items) or '""'


def expression(kind: str, value: Any) -> str:
    """Return the expression of one thing, by the names of Python's parser."""
    if kind == "LITERAL":
        return characters([(value, value)])
    if kind == "NOT_LITERAL":
        return characters(complement([(value, value)]))
    if kind == "ANY":
        return characters(complement([(10, 10), (13, 13)]))
    if kind == "IN":
        return characters(ranges(value))
    if kind == "BRANCH":
        return f"({' | '.join(sequence(choice) for choice in value[1])})"
    if kind == "SUBPATTERN":
        return f"({sequence(value[3])})"
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        least, most, inner = value
        unlimited = most == re._constants.MAXREPEAT  # type: ignore[attr-defined]
        if max(least, 0 if unlimited else most) > MOST_REPEATS:
            raise Unsupported(f"more than {MOST_REPEATS} repetitions")
        return f"({sequence(inner)}){{{least},{'' if unlimited else most}}}"
    words = {"AT": "an anchor inside of it", "GROUPREF": "a reference to a group"}
    raise Unsupported(words.get(kind, f"{kind.lower().replace('_', ' ')}"))


def ranges(items: Sequence[Any]) -> Ranges:
    """Return the code points of a bracket expression."""
    negated, found = False, []
    for kind, value in items:
        name = str(kind)
        if name == "NEGATE":
            negated = True
        elif name == "LITERAL":
            found.append((value, value))
        elif name == "RANGE":
            found.append(tuple(value))
        else:
            category = str(value)
            positive = CLASSES.get(category.replace("_NOT", ""))
            if positive is None:
                raise Unsupported(category.lower())
            found += complement(positive) if "_NOT" in category else positive
    return complement(found) if negated else found


def complement(found: Sequence[tuple[int, int]]) -> Ranges:
    """Return all code points but these."""
    result: Ranges = []
    begin = 0
    for first, last in sorted(found):
        if first > begin:
            result.append((begin, first - 1))
        begin = max(begin, last + 1)
    return [*result, (begin, LAST)] if begin <= LAST else result


def characters(found: Sequence[tuple[int, int]]) -> str:
    """Return the expression of one character out of ranges, as it is spelled inside of a JSON string."""
    choices = [
        literal(json.dumps(chr(code))[1:-1]) for code in ESCAPED if any(first <= code <= last for first, last in found)
    ]
    plain = _without_escaped(found)
    if plain:
        spans = "".join(_code(first) + (f"-{_code(last)}" if last > first else "") for first, last in plain)
        choices.insert(0, f"[{spans}]")
    if len(plain) == 1 and plain[0][0] == plain[0][1] and not choices[1:]:
        return literal(chr(plain[0][0]))
    if not choices:
        raise Unsupported("a character that JSON cannot spell")
    return choices[0] if len(choices) == 1 else f"({' | '.join(choices)})"


def _without_escaped(found: Sequence[tuple[int, int]]) -> Ranges:
    """Return the part of ranges that needs no escape: no controls, no quote, no backslash."""
    forbidden = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F), (0xD800, 0xDFFF)]
    outside = complement(found)
    return complement([*outside, *forbidden])


def _code(code: int) -> str:
    return f"\\x{code:02X}" if code < 256 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def literal(text: str) -> str:
    """Return a text as a literal of GBNF."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
