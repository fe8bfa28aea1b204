"""Tools of a request: what the template is shown of them, how calls are told from the answer, calls that must be."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from ..runner.model import Model, tokenize
from ..runner.templates.endings import is_special
from ..runner.templates.message import Message, check_tools
from ..runner.templates.tool_format import GENERIC, CallStream, ToolFormat
from .errors import ApiError
from .requests import ChatRequest, NamedTool

# What a model is told whose template shows no tools.
ADVICE = """You can call functions. To call one, answer with nothing but
<tool_call>{{"name": NAME, "arguments": ARGUMENTS}}</tool_call>
These are the functions, with the JSON schemas of their arguments:
{tools}"""


@dataclass(frozen=True)
class Toolset:
    """Messages and tools as the template takes them; `form` None is an answer that can call nothing."""

    messages: list[Message]
    shown: list[Any]
    form: ToolFormat | None = None
    grammar: str | None = None
    spelled: frozenset[int] = frozenset()

    def calls(self) -> CallStream:
        """Return what tells calls from an answer."""
        return CallStream(self.form)


def toolset(request: ChatRequest, messages: list[Message], own: ToolFormat | None, model: Model) -> Toolset:
    """Return what a request's tools amount to; `own` is the template's format of calls, None when it has none.

    Raises ApiError and EngineError for tools that are none, and a choice that is not among them.
    """
    tools, choice = list(request.tools or ()), request.tool_choice
    check_tools(tools)
    messages = messages if own else [_as_text(message) for message in messages]
    if not tools or choice == "none":
        return Toolset(messages, [])
    callable_tools = tools
    if isinstance(choice, NamedTool):
        callable_tools = [tool for tool in tools if tool["function"]["name"] == choice.function.name]
        if not callable_tools:
            raise ApiError(400, f"there is no tool {choice.function.name!r}", "tool_choice")
    form = own or GENERIC
    grammar = None
    if choice is not None and choice != "auto":
        grammar = form.grammar(callable_tools, several=request.parallel_tool_calls is True)
    if own is None:
        listed = "\n".join(msgspec.json.encode(tool["function"]).decode() for tool in tools)
        messages = _with_advice(messages, ADVICE.format(tools=listed))
    return Toolset(messages, tools if own else [], form, grammar, _control_tokens(model, form.texts))


def _as_text(message: Message) -> Message:
    """Return calls and results as text, for a template that shows neither."""
    if message.tool_calls:
        text = "\n".join(filter(None, (message.text, GENERIC.spelled(message.tool_calls))))
        return replace(message, content=text, tool_calls=())
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.text}\n</tool_response>")
    return message


def _with_advice(messages: Sequence[Message], advice: str) -> list[Message]:
    if messages and messages[0].role in ("system", "developer"):
        return [replace(messages[0], content=f"{messages[0].text}\n\n{advice}"), *messages[1:]]
    return [Message("system", advice), *messages]


def _control_tokens(model: Model, texts: Sequence[str]) -> frozenset[int]:
    """Return the control tokens in markers, which would be no text otherwise."""
    found = (token for text in texts for token in tokenize(model, text, add_special=False))
    return frozenset(token for token in found if is_special(model, token))
