"""Messages and a chat template in, prompt tokens out: rendering, history, and what is dropped when it is too long."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from gguf.constants import Keys

from ..formats.errors import EngineError
from .model import Model, chat_template, special_text, tokenize

Message = dict[str, str]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation: its tokens, the messages in it, and how many old ones were left out."""

    tokens: tuple[int, ...]
    messages: tuple[Message, ...]
    n_dropped: int


def prompt_of(model: Model, messages: Sequence[Message], n_ctx: int, n_answer: int) -> Prompt:
    """Render and tokenize a conversation so that n_answer tokens of n_ctx remain for the answer.

    When it is too long the oldest turns go, whole: a user's message and all up to the next one. System messages
    at the start and the last user's message stay. Raises EngineError when those alone do not fit, or when the
    template fails.
    """
    kept = list(messages)
    while True:
        tokens = chat_tokens(model, kept)
        if len(tokens) + n_answer <= n_ctx:
            return Prompt(tuple(tokens), tuple(kept), len(messages) - len(kept))
        shorter = without_oldest_turn(kept)
        if shorter is None:
            raise EngineError(
                f"the message has {len(tokens)} tokens and {n_answer} are kept for the answer, but the context "
                f"has {n_ctx}; shorten the message or use a larger -c/--ctx-size"
            )
        kept = shorter


def without_oldest_turn(messages: Sequence[Message]) -> list[Message] | None:
    """Return the messages without the oldest turn; None when only one turn is left."""
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if len(users) < 2:
        return None
    return [*messages[: users[0]], *messages[users[1] :]]


def chat_tokens(model: Model, messages: Sequence[Message]) -> list[int]:
    """Return the tokens of a conversation up to where the assistant's answer begins."""
    text = render(model, messages)
    bos = special_text(model, Keys.Tokenizer.BOS_ID)
    begins_with_bos = bool(bos) and text.startswith(bos)
    return tokenize(model, text, add_special=not begins_with_bos)


def render(model: Model, messages: Sequence[Message]) -> str:
    """Apply the file's chat template, or ChatML when it has none.

    Templates that refuse a system message get it in front of the first user's message. Raises EngineError with
    what a failing template says.
    """
    template = compiled(chat_template(model) or CHATML, str(model.path))
    values = {
        "bos_token": special_text(model, Keys.Tokenizer.BOS_ID),
        "eos_token": special_text(model, Keys.Tokenizer.EOS_ID),
        "add_generation_prompt": True,
        "tools": None,
    }
    attempts = [list(messages)]
    if len(messages) > 1 and messages[0]["role"] == "system" and messages[1]["role"] == "user":
        first = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        attempts.append([{"role": "user", "content": first}, *messages[2:]])
    complaint: Exception | None = None
    for attempt in attempts:
        try:
            return template.render(messages=attempt, **values)
        except Exception as error:
            complaint = complaint or error
    raise EngineError(f"{model.path}: the chat template fails: {_line(complaint)}") from complaint


@cache
def compiled(source: str, path: str) -> Any:
    """Compile a chat template in a sandbox, with what Hugging Face's templates expect (transformers,
    utils/chat_template_utils.py). Raises EngineError for broken syntax.
    """
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, generation_tag()]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    try:
        return environment.from_string(source)
    except Exception as error:
        raise EngineError(f"{path}: the chat template is broken: {_line(error)}") from error


@cache
def generation_tag() -> Any:
    """Return the extension that reads {% generation %}, which marks answers for training, as plain content."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class GenerationTag(Extension):
        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    GenerationTag.tags = {"generation"}
    return GenerationTag


def _line(error: Exception | None) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def save(path: Path, messages: Sequence[Message]) -> None:
    """Write a conversation as JSON: {"messages": [{"role", "content"}]}."""
    text = json.dumps({"messages": list(messages)}, indent=2, ensure_ascii=False) + "\n"
    path.write_bytes(text.encode("utf-8", "replace"))


def load(path: Path) -> list[Message]:
    """Read a conversation that `save` wrote. Raises EngineError for anything else."""
    try:
        messages = json.loads(path.read_text("utf-8"))["messages"]
        return [{"role": str(each["role"]), "content": str(each["content"])} for each in messages]
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise EngineError(f'{path}: not a saved conversation ({{"messages": [...]}})') from None
