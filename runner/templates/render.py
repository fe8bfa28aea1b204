"""Messages in, the text of a prompt out, spelled as the template wants them, and checked: nothing gets lost unsaid."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...formats.errors import EngineError
from .message import TEXT, Json, Message, Part, check_tools, message_to_json
from .source import Template
from .wants import Wants, wants_of

THOUGHTS = re.compile(r"^.*?(?:</think>|</seed:think>|\[/THINK\]|<\|END_THINKING\|>)", re.DOTALL)
# gpt-oss tells developers from the system; llama.cpp calls a developer the system for every other template
HAS_DEVELOPERS = "<|channel|>"


@dataclass(frozen=True)
class Rendered:
    """A prompt's text; `notes` says what was changed so that nothing got lost, `lost` what is missing all the same."""

    text: str
    notes: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Form:
    """One way of giving the messages to a template, and what is to be said about it."""

    messages: tuple[Message, ...]
    notes: tuple[str, ...] = ()


def render(
    template: Template,
    messages: Sequence[Message],
    special: Mapping[str, str],
    tools: Sequence[Json] = (),
    values: Mapping[str, Json] | None = None,
    add_generation_prompt: bool = True,
) -> Rendered:
    """Apply a template to messages.

    `special` holds the spellings of bos_token and its like, `values` what `--chat-template-kwargs` gives. Raises
    EngineError with what a failing template says, for parts that are no text, and when the last user's message
    would be missing.
    """
    check_tools(tools)
    _refuse_media(messages)
    wants = wants_of(template)
    given: dict[str, Json] = {
        "bos_token": "",
        "eos_token": "",
        **special,
        "add_generation_prompt": add_generation_prompt,
        "tools": list(tools) or None,
        "documents": None,
        **(values or {}),
    }
    best: Rendered | None = None
    complaint: EngineError | None = None
    for form in forms(messages, wants, template):
        try:
            text = _rendered(template, form.messages, wants, given)
        except EngineError as error:
            complaint = complaint or error
            continue
        found = Rendered(text, form.notes, missing(text, messages, tools))
        if not found.lost:
            return found
        best = best or found
    if best is None:
        raise complaint or EngineError(f"{template.where}: the chat template fails")
    if any(line.startswith("the last") for line in best.lost):
        raise EngineError(f"{template.where}: {'; '.join(best.lost)}; {HOW_TO_GO_ON}")
    return best


HOW_TO_GO_ON = "use another template: --chat-template chatml, or the model's own with --chat-template-file"


def forms(messages: Sequence[Message], wants: Wants, template: Template) -> list[Form]:
    """Return the ways to try, the first that loses nothing counts."""
    kept = tuple(messages)
    if HAS_DEVELOPERS not in template.source:
        kept = tuple(replace(each, role="system") if each.role == "developer" else each for each in kept)
    as_it_is, merged = Form(kept), merge_system(kept)
    has_system = any(each.role == "system" for each in kept)
    if not has_system:
        return [as_it_is]
    return [as_it_is, merged] if wants.system else [merged, as_it_is]


def merge_system(messages: Sequence[Message]) -> Form:
    """Put system messages in front of the user's message that follows, as llama.cpp does: with a line break between."""
    merged: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message.role == "system":
            waiting.append(message.text)
        elif waiting and message.role == "user":
            merged.append(_in_front(waiting, message))
            waiting = []
        else:
            merged.append(message)
    if waiting:
        merged.append(Message("user", "\n".join(waiting)))
    note = "the chat template takes no system message; it was put in front of the user's message"
    return Form(tuple(merged), (note,))


def _in_front(texts: Sequence[str], message: Message) -> Message:
    if isinstance(message.content, tuple):
        return replace(message, content=(*(Part(text=text) for text in texts), *message.content))
    return replace(message, content="\n".join((*texts, message.content or "")))


def missing(text: str, messages: Sequence[Message], tools: Sequence[Json]) -> tuple[str, ...]:
    """Return a sentence for each message whose text is not in a prompt, and for tools that are not."""
    squeezed = _squeezed(text)
    wanted: Counter[str] = Counter()
    last_user = max((number for number, each in enumerate(messages) if each.role == "user"), default=-1)
    found: list[str] = []
    for number, message in enumerate(messages):
        pieces = [part for part in map(_expected(message.role), message.texts) if part]
        wanted.update(pieces)
        if all(_is_in(piece, squeezed, wanted[piece]) for piece in pieces) and all(
            call.name in text for call in message.tool_calls
        ):
            continue
        which = "the last message of the user" if number == last_user else f"message {number + 1} ({message.role})"
        found.append(f"{which} is not in the prompt that the chat template makes")
    absent = [tool["function"]["name"] for tool in tools if tool["function"]["name"] not in text]
    if absent:
        found.append(f"the chat template does not show the tool {', '.join(absent)}")
    return tuple(found)


def _expected(role: str):
    """Return the function that takes out of a text what a template may leave out: an answer's thoughts."""

    def expected(text: str) -> str:
        kept = THOUGHTS.sub("", text) if role == "assistant" else text
        return "" if role == "tool" and _is_structure(kept) else _squeezed(kept)

    return expected


def _is_structure(text: str) -> bool:
    """Tell whether a tool's result is JSON, which templates take apart and write anew."""
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


def _squeezed(text: str) -> str:
    """Return a text without white space, since templates trim it."""
    return "".join(text.split())


def _is_in(piece: str, squeezed: str, times: int) -> bool:
    spellings = (piece, _squeezed(json.dumps(piece, ensure_ascii=False)[1:-1]), _squeezed(json.dumps(piece)[1:-1]))
    return any(squeezed.count(spelling) >= times for spelling in spellings)


def _rendered(template: Template, messages: Sequence[Message], wants: Wants, given: Mapping[str, Json]) -> str:
    """Render messages; null contents are left out, as transformers does, or "" where the template needs a text."""
    spelled = [spell_message(message, wants) for message in messages]
    try:
        return template.render(spelled, given)
    except EngineError:
        if all("content" in each for each in spelled):
            raise
        return template.render([{"content": "", **each} for each in spelled], given)


def spell_message(message: Message, wants: Wants) -> dict[str, Json]:
    """Return a message as a template reads it: parts or text, arguments as an object or as text, no nulls."""
    spelled = message_to_json(message)
    if isinstance(message.content, str) and wants.parts and not wants.strings:
        spelled["content"] = [{"type": TEXT, "text": message.content}]
    elif isinstance(message.content, tuple) and not wants.parts:
        spelled["content"] = message.text
    if message.reasoning_content is not None:
        spelled["thinking"] = message.reasoning_content  # gpt-oss's name for it
    for call in spelled.get("tool_calls", ()):
        if wants.object_arguments:
            call["function"]["arguments"] = _arguments(call["function"])
        if not call["id"]:
            del call["id"]
    return {key: value for key, value in spelled.items() if value is not None}


def _arguments(function: Mapping[str, str]) -> Json:
    try:
        return json.loads(function["arguments"] or "{}")
    except ValueError:
        raise EngineError(f"the arguments of the call of {function['name']!r} are no JSON") from None


def _refuse_media(messages: Sequence[Message]) -> None:
    for message in messages:
        other = (
            [part.type for part in message.content if part.type != TEXT] if isinstance(message.content, tuple) else []
        )
        if other:
            raise EngineError(f"a message holds a part of the type {other[0]!r}; only text can be read here")
