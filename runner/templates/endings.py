"""Where an answer ends: the token, or the text, that a template puts behind an assistant's turn.

llama.cpp ends at the file's eos, eot and eom tokens and at the names that it knows. A template may end turns by
another token, or by plain text; a model that learned it would then talk to itself for ever.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...formats.errors import EngineError
from ...formats.llamacpp import llama
from ..model import Model, is_end, spell, tokenize
from .message import assistant, user
from .source import Template
from .thinking import around_thoughts
from .wants import wants_of

QUESTION, ANSWER, NEXT = "PROBE-QUESTION", "PROBE-ANSWER", "PROBE-NEXT"
# gpt-oss's answers are several messages, one for thoughts; its template shows none of them together
CHANNEL = "<|channel|>"
# llama.cpp takes it for an end everywhere but where answers have several messages (gpt-oss, Solar Open)
END = "<|end|>"
# What looks like a marker of a turn: <|im_end|>, <end_of_turn>, [INST], </s>
MARKER = re.compile(r"<[^<>\s]+>|\[/?[A-Z][A-Z_]*\]")


@dataclass(frozen=True)
class Endings:
    """Tokens and texts that end an answer beside the file's own; `note` says so to the user."""

    tokens: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()
    note: str | None = None


@dataclass(frozen=True)
class Stops:
    """Stop strings as an engine watches for them: texts, and tokens that have no text of their own."""

    texts: tuple[str, ...] = ()
    tokens: frozenset[int] = frozenset()


def endings_of(model: Model, template: Template, special: dict[str, str]) -> Endings:
    """Return what ends an answer by this template and would not end it by the file alone."""
    behind = after_an_answer(template, special)
    if not behind.strip():
        return Endings()
    tokens = tokenize(model, behind.lstrip(), add_special=False)
    first = next((token for token in tokens if spell(model, token, special=True).strip()), None)
    if first is None:
        return Endings()
    spelled = spell(model, first, special=True).decode("utf-8", "replace")
    if is_end(model, first) or ends_thoughts_too(template, special, spelled):
        return Endings()
    if is_special(model, first):
        return Endings(frozenset({first}), (), f"answers end at {spelled!r} too, as the chat template says")
    if any(is_end(model, token) for token in tokens):
        return Endings()
    marker = MARKER.match(behind.lstrip())
    text = marker.group() if marker else behind.strip()
    return Endings(frozenset(), (text,), f"answers end at the text {text!r} too, as the chat template says")


def ends_thoughts_too(template: Template, special: dict[str, str], marker: str) -> bool:
    """Tell whether a marker also stands between thoughts and what is said, as gpt-oss's <|end|>: it ends no answer."""
    return marker == END or CHANNEL in template.source or marker in around_thoughts(template, special)[1]


def after_an_answer(template: Template, special: dict[str, str]) -> str:
    """Return what a template puts between an answer and the next question; "" when it cannot be told."""
    values = {"bos_token": "", "eos_token": "", **special, "tools": None, "documents": None}
    wants = wants_of(template)
    messages = [user(QUESTION), assistant(ANSWER), user(NEXT)]
    spelled = [
        {"role": each.role, "content": [{"type": "text", "text": each.text}] if not wants.strings else each.text}
        for each in messages
    ]
    try:
        text = template.render(spelled, values | {"add_generation_prompt": True})
    except EngineError:
        return ""
    _, found, rest = text.partition(ANSWER)
    between, again, _ = rest.partition(NEXT)
    return between if found and again else ""


def stops_of(model: Model, stops: Sequence[str]) -> Stops:
    """Return stop strings as texts, and by id where one is a token without text, as llama.cpp does for `-r`."""
    tokens = set()
    for stop in stops:
        found = tokenize(model, stop, add_special=False) if stop else []
        if len(found) == 1 and is_special(model, found[0]):
            tokens.add(found[0])
    return Stops(tuple(stops), frozenset(tokens))


def is_special(model: Model, token: int) -> bool:
    """Tell whether a token is one of the vocabulary's control or user-defined tokens."""
    api = llama()
    kinds = api.LLAMA_TOKEN_ATTR_CONTROL | api.LLAMA_TOKEN_ATTR_USER_DEFINED
    return bool(api.llama_vocab_get_attr(model.vocab, token) & kinds)
