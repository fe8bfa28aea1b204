"""How a template writes calls of tools, found out by showing it one; and calls told from what an answer says.

Three shapes are known: JSON objects with a name and arguments, between markers or alone (Hermes, Qwen, Llama 3), a list
of them (Mistral), and a name between markers with its arguments as JSON behind it (DeepSeek, newer Mistral).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...formats.errors import EngineError
from ..json_grammar import json_schema_grammar
from ..streaming import overlap
from .message import Json, ToolCall
from .source import Template
from .wants import TOOL, TOOL_DEFINITION, wants_of

QUESTION, ANSWER, ARGUMENT = "PROBE-QUESTION", "PROBE-ANSWER", "PROBE-ARGUMENT"
NAME_KEYS, ARGUMENT_KEYS = ("name", "function", "tool_name"), ("arguments", "parameters", "args")


@dataclass(frozen=True)
class ToolFormat:
    """What stands before, within and behind a call.

    With `name_key` a call is a JSON object, `is_list` a list of them; without, `start`, the name, `between`, the
    arguments, `end`.
    """

    start: str
    end: str
    name_key: str | None = None
    arguments_key: str = "arguments"
    between: str = ""
    is_list: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """The markers, whose control tokens must be spelled to be seen."""
        return tuple(text for text in (self.start, self.between, self.end) if text.strip())

    def spelled(self, calls: Sequence[ToolCall]) -> str:
        """Return calls as the model would write them."""
        if self.name_key is None:
            return "".join(f"{self.start}{call.name}{self.between}{call.arguments}{self.end}" for call in calls)
        objects = [f'{{"{self.name_key}": "{call.name}", "{self.arguments_key}": {call.arguments}}}' for call in calls]
        if self.is_list:
            return f"{self.start}[{', '.join(objects)}]{self.end}"
        return "\n".join(f"{self.start}{each}{self.end}" for each in objects)

    def grammar(self, tools: Sequence[Json], several: bool) -> str:
        """Return the grammar of an answer that is a call of one of the tools, or of several. Raises EngineError."""
        if self.name_key is None:
            return self._grammar_by_name(tools)
        schema = {"anyOf": [self._schema(tool["function"]) for tool in tools]}
        rest = json_schema_grammar(json.dumps(schema)).removeprefix("root ::= ")
        if self.is_list:
            more = ' ("," space call)*' if several else ""
            root = f'{literal_of(self.start)} "[" call{more} "]"'
        else:
            one = " ".join(filter(None, (literal_of(self.start), "call", literal_of(self.end))))
            root = f'{one} ("\\n" {one})*' if several else one
        return f"root ::= {root}\ncall ::= {rest}"

    def _schema(self, function: Mapping[str, Json]) -> Json:
        assert self.name_key
        properties = {self.name_key: {"const": function["name"]}, self.arguments_key: parameters_of(function)}
        return {"type": "object", "properties": properties, "required": list(properties)}

    def _grammar_by_name(self, tools: Sequence[Json]) -> str:
        """Return the grammar of one call whose name stands outside of its JSON."""
        schema = {"anyOf": [parameters_of(tool["function"]) for tool in tools[:1]]}
        names = " | ".join(literal_of(tool["function"]["name"]) for tool in tools)
        arguments = json_schema_grammar(json.dumps(schema if len(tools) == 1 else {})).removeprefix("root ::= ")
        parts = (literal_of(self.start), f"({names})", literal_of(self.between), "call", literal_of(self.end))
        return f"root ::= {' '.join(filter(None, parts))}\ncall ::= {arguments}"


# What a model is told to write when its template knows no tools.
GENERIC = ToolFormat("<tool_call>", "</tool_call>", "name")


def literal_of(text: str) -> str:
    """Return a text as a terminal of a grammar; "" for none."""
    return f'"{"".join(ESCAPED.get(letter, letter) for letter in text)}"' if text else ""


ESCAPED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def parameters_of(function: Mapping[str, Json]) -> Json:
    """Return the schema of a function's arguments: any object where it names none."""
    found = function.get("parameters")
    return found if isinstance(found, dict) and found else {"type": "object"}


def tool_format_of(template: Template, special: Mapping[str, str]) -> ToolFormat | None:
    """Return how a template writes calls; None when it shows no tools, or calls in a shape that is not known."""
    wants = wants_of(template)
    if not wants.tools or not wants.tool_calls:
        return None
    middle = _around_a_call(template, special, wants.object_arguments)
    if middle is None or TOOL not in middle:
        return None
    at = middle.index(TOOL)
    for opening in (position for position in range(at, -1, -1) if middle[position] == "{"):
        try:
            found, length = json.JSONDecoder().raw_decode(middle[opening:])
        except ValueError:
            continue
        name_key = next((key for key in NAME_KEYS if found.get(key) == TOOL), None)
        arguments_key = next((key for key in ARGUMENT_KEYS if key in found), None)
        if name_key and arguments_key:
            start, end = middle[:opening], middle[opening + length :]
            is_list = start.rstrip().endswith("[")
            start = start.rstrip().removesuffix("[") if is_list else start
            return ToolFormat(start.lstrip(), "" if is_list else end.rstrip(), name_key, arguments_key, is_list=is_list)
    behind = middle[at + len(TOOL) :]
    opening = behind.find("{")
    try:
        _, length = json.JSONDecoder().raw_decode(behind[opening:])
    except ValueError:
        return None
    start, end = middle[:at].lstrip(), behind[opening + length :].rstrip()
    return ToolFormat(start, end, between=behind[:opening]) if start else None


def _around_a_call(template: Template, special: Mapping[str, str], as_object: bool) -> str | None:
    """Return what stands in place of an answer's text when the answer is a call."""
    arguments: Any = {"probe_argument": ARGUMENT} if as_object else json.dumps({"probe_argument": ARGUMENT})
    function = {"name": TOOL, "arguments": arguments}
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call00001", "type": "function", "function": function}],
    }
    question = {"role": "user", "content": QUESTION}
    values: dict[str, Json] = {"bos_token": "", "eos_token": "", **special, "documents": None}
    values |= {"tools": [TOOL_DEFINITION], "add_generation_prompt": False}
    try:
        called = template.render([question, call], values)
        said = template.render([question, {"role": "assistant", "content": ANSWER}], values)
    except EngineError:
        return None
    before, found, behind = said.rpartition(ANSWER)
    if not found or not called.startswith(before.rstrip()):
        return None
    rest = called[len(before.rstrip()) :].lstrip()
    ending = behind.strip()
    return rest.strip().removesuffix(ending) if ending else rest


class CallStream:
    """Tells calls from what an answer says, piece by piece; text that may still become a call is held back."""

    def __init__(self, form: ToolFormat | None) -> None:
        """Look for calls of this form; None is an answer that calls nothing."""
        self._form = form
        self._held = ""
        self._inside = False
        self._said = False
        self._took = False

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Take a piece and return what is certain: text, and the calls that were completed."""
        if self._form is None:
            return text, []
        self._held += text
        said = "" if self._inside else self._look_for_start()
        return (said, self._calls()) if self._inside else (said, [])

    def flush(self) -> tuple[str, list[ToolCall]]:
        """Return what is held back when nothing more comes: a call that was not completed is text."""
        calls = self._calls() if self._inside else []
        held, self._held = self._held, ""
        is_rest = self._took and self._form is not None and self._form.end.strip().startswith(held.strip())
        return ("" if is_rest or not held.strip() else held), calls

    def _look_for_start(self) -> str:
        assert self._form
        marker = self._form.start.strip()
        if not marker:  # a call is all of the answer, or there is none
            begun = self._held.lstrip()
            if not self._said and (not begun or begun[0] in "{["):
                self._inside = bool(begun)
                return ""
            said, self._held, self._said = self._held, "", True
            return said
        before, found, _ = self._held.partition(marker)
        if found:
            self._inside = True
            self._held = self._held[len(before) :]
            return before if before.strip() else ""
        keep = overlap(self._held, marker)
        said, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return said

    def _calls(self) -> list[ToolCall]:
        """Take the calls off that are complete."""
        assert self._form
        found: list[ToolCall] = []
        while (taken := self._next()) is not None:
            calls, length = taken
            found += calls
            self._took = True
            self._held = self._held[length:]
            for text in (self._form.end.strip(), ",", "]"):
                if text and self._held.lstrip().startswith(text):
                    self._held = self._held.lstrip().removeprefix(text)
        return found

    def _next(self) -> tuple[list[ToolCall], int] | None:
        """Return the calls of the next JSON value and the length of all up to its end; None when it is not complete."""
        assert self._form
        opening = min((at for at in (self._held.find("{"), self._held.find("[{")) if at >= 0), default=-1)
        if opening < 0:
            return None
        try:
            value, length = json.JSONDecoder().raw_decode(self._held[opening:])
        except (ValueError, RecursionError):
            return None
        if self._form.name_key is None:
            name = self._held[:opening].strip().removeprefix(self._form.start.strip())
            name = name.removesuffix(self._form.between.strip()).strip()
            return [_call(name, value)], opening + length
        objects = value if isinstance(value, list) else [value]
        calls = [
            _call(str(each.get(self._form.name_key, "")), each.get(self._form.arguments_key, {}))
            for each in objects
            if isinstance(each, dict)
        ]
        return calls, opening + length


def _call(name: str, arguments: Any) -> ToolCall:
    spelled = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(name, spelled)
