"""Messages as the OpenAI API knows them, frozen: parts, tool calls, tool results, reasoning, names."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...formats.errors import EngineError

# A JSON value whose fields are not ours to know: a tool's definition, what a template is given.
Json = Any

TEXT = "text"


@dataclass(frozen=True)
class Part:
    """A part of a content: text, or another kind (an image, ...) whose JSON is kept in `source` as it came."""

    type: str = TEXT
    text: str = ""
    source: str = ""


@dataclass(frozen=True)
class ToolCall:
    """A function that the assistant calls; `arguments` is JSON text, as in the API."""

    name: str
    arguments: str = "{}"
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One message; content None is the API's null, which stands beside tool calls."""

    role: str
    content: str | tuple[Part, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts in it, in order."""
        if isinstance(self.content, str):
            return (self.content,)
        return tuple(part.text for part in self.content or () if part.type == TEXT)

    @property
    def text(self) -> str:
        """All its text; llama.cpp puts a line break between parts (common/chat.cpp, concat_content_parts)."""
        return "\n".join(self.texts)


def user(text: str) -> Message:
    """Return a user's message."""
    return Message("user", text)


def assistant(text: str) -> Message:
    """Return an answer."""
    return Message("assistant", text)


def system(text: str) -> Message:
    """Return a system message."""
    return Message("system", text)


def message_from_json(value: Json) -> Message:
    """Read one message of the API. Raises EngineError that names the field which is wrong."""
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        raise EngineError(f"a message is an object with a role and a content, not {_shown(value)}")
    role = value["role"]
    if "content" not in value and not value.get("tool_calls"):
        raise EngineError(f"a message of the role {role!r} has neither a content nor tool calls")
    reasoning = next((value[key] for key in ("reasoning_content", "reasoning", "thinking") if value.get(key)), None)
    return Message(
        role=role,
        content=_content(value.get("content"), role),
        name=_text_or_none(value, "name"),
        tool_calls=tuple(_tool_call(each) for each in _list(value, "tool_calls")),
        tool_call_id=_text_or_none(value, "tool_call_id"),
        reasoning_content=_text_or_none({"reasoning_content": reasoning}, "reasoning_content"),
    )


def message_to_json(message: Message) -> dict[str, Json]:
    """Return one message as the API spells it; `message_from_json` gives the same message back."""
    content = message.content
    found: dict[str, Json] = {
        "role": message.role,
        "content": [part_to_json(part) for part in content] if isinstance(content, tuple) else content,
    }
    if message.reasoning_content is not None:
        found["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    found |= {key: value for key in ("name", "tool_call_id") if (value := getattr(message, key)) is not None}
    return found


def part_to_json(part: Part) -> Json:
    """Return a part as the API spells it."""
    return json.loads(part.source) if part.source else {"type": part.type, "text": part.text}


def check_tools(tools: Sequence[Json]) -> None:
    """Refuse definitions of tools that no template could show. Raises EngineError."""
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise EngineError(f'a tool is {{"type": "function", "function": {{"name": ...}}}}, not {_shown(tool)}')


def _content(value: Json, role: str) -> str | tuple[Part, ...] | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise EngineError(f"the content of a message of the role {role!r} is neither text nor a list of parts")
    return tuple(_part(each) for each in value)


def _part(value: Json) -> Part:
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        raise EngineError(f"a part of a content is an object with a type, not {_shown(value)}")
    if value["type"] != TEXT:
        return Part(value["type"], source=json.dumps(value, ensure_ascii=False))
    if not isinstance(value.get("text"), str):
        raise EngineError(f"a part of the type 'text' has no text: {_shown(value)}")
    extra = value.keys() - {"type", "text"}
    return Part(TEXT, value["text"], json.dumps(value, ensure_ascii=False) if extra else "")


def _tool_call(value: Json) -> ToolCall:
    function = value.get("function") if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise EngineError(f"a tool call is an object with a function and its name, not {_shown(value)}")
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(function["name"], arguments, str(value.get("id") or ""))


def _list(value: Mapping[str, Json], key: str) -> list[Json]:
    found = value.get(key) or []
    if not isinstance(found, list):
        raise EngineError(f"{key} of a message is a list, not {_shown(found)}")
    return found


def _text_or_none(value: Mapping[str, Json], key: str) -> str | None:
    found = value.get(key)
    if found is not None and not isinstance(found, str):
        raise EngineError(f"{key} of a message is a text, not {_shown(found)}")
    return found


def _shown(value: Json) -> str:
    return json.dumps(value, default=str)[:60]
