"""Messages in, prompt tokens out: what is dropped when they grow too long; conversations as files."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..formats.errors import EngineError
from .templates.chat_format import ChatFormat
from .templates.message import Json, Message, message_from_json, message_to_json
from .templates.thinking import ThoughtStream


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation: its tokens, the messages in it, and how many old ones were left out.

    `remarks` says what the template made the program change, or lost; `thoughts` tells thoughts from its answer.
    """

    tokens: tuple[int, ...]
    messages: tuple[Message, ...]
    n_dropped: int
    remarks: tuple[str, ...] = ()
    thoughts: ThoughtStream = field(default_factory=lambda: ThoughtStream(None))


def prompt_of(
    chat: ChatFormat,
    messages: Sequence[Message],
    n_ctx: int,
    n_answer: int,
    *,
    tools: Sequence[Json] = (),
    values: Mapping[str, Json] | None = None,
) -> Prompt:
    """Render and tokenize a conversation so that n_answer tokens of n_ctx remain for the answer.

    When it is too long the oldest turns go, whole: a user's message and all up to the next one. System messages
    at the start and the last user's message stay. Raises EngineError when those alone do not fit, or when the
    template fails.
    """
    kept = list(messages)
    while True:
        rendered = chat.render(kept, tools, values)
        tokens = chat.tokens(rendered)
        if len(tokens) + n_answer <= n_ctx:
            remarks = (*rendered.notes, *rendered.lost)
            n_dropped = len(messages) - len(kept)
            return Prompt(tuple(tokens), tuple(kept), n_dropped, remarks, chat.thoughts(rendered))
        shorter = without_oldest_turn(kept)
        if shorter is None:
            raise EngineError(
                f"the message has {len(tokens)} tokens and {n_answer} are kept for the answer, but the context "
                f"has {n_ctx}; shorten the message or use a larger -c/--ctx-size"
            )
        kept = shorter


def without_oldest_turn(messages: Sequence[Message]) -> list[Message] | None:
    """Return the messages without the oldest turn; None when only one turn is left."""
    users = [i for i, message in enumerate(messages) if message.role == "user"]
    if len(users) < 2:
        return None
    return [*messages[: users[0]], *messages[users[1] :]]


def save(path: Path, messages: Sequence[Message]) -> None:
    """Write a conversation as JSON: {"messages": [...]}, each as the OpenAI API spells it.

    The file is complete or it is not there: what was under this name stays until then.
    """
    text = json.dumps({"messages": [message_to_json(each) for each in messages]}, indent=2, ensure_ascii=False)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes((text + "\n").encode("utf-8", "replace"))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> list[Message]:
    """Read a conversation: {"messages": [...]} or the list alone, in UTF-8 with or without a byte order mark.

    Raises EngineError for anything else, and names the message that is none.
    """
    try:
        document = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise EngineError(f'{path}: not a saved conversation ({{"messages": [...]}}): no JSON') from None
    messages = document.get("messages") if isinstance(document, dict) else document
    if not isinstance(messages, list):
        raise EngineError(f'{path}: not a saved conversation ({{"messages": [...]}})')
    found = []
    for number, each in enumerate(messages, 1):
        try:
            found.append(message_from_json(each))
        except EngineError as error:
            raise EngineError(f"{path}: not a saved conversation: message {number}: {error}") from None
    return found
