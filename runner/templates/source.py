"""Which template: the file's own, one of its named ones, one of llama.cpp's built-in ones, or what a user gives.

Out: a `Template`, which turns messages that are spelled as the template wants them into text.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gguf.constants import Keys

from ...formats.errors import EngineError
from ...formats.llamacpp import llama
from .jinja import compiled, one_line
from .message import Json

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NAMED = Keys.Tokenizer.CHAT_TEMPLATE + "."
DEFAULT, TOOL_USE = "default", "tool_use"


@dataclass(frozen=True)
class Template:
    """A chat template: Jinja source, or with `builtin` a name that llama.cpp itself renders.

    `where` says where it comes from, for messages; `chosen` whether the file or the user named one at all.
    """

    source: str
    where: str
    builtin: str | None = None
    chosen: bool = True

    def render(self, messages: Sequence[Json], values: Mapping[str, Json]) -> str:
        """Return the text. Raises EngineError with what a failing template says."""
        if self.builtin is not None:
            return render_builtin(self.builtin, messages, bool(values.get("add_generation_prompt")))
        template = compiled(self.source, self.where)
        try:
            return template.render(messages=messages, **values)
        except Exception as error:
            if not values.get("tools", ()) and (text := _without_tools(template, messages, values)) is not None:
                return text
            raise EngineError(f"{self.where}: the chat template fails: {one_line(error)}") from error


def _without_tools(template: Any, messages: Sequence[Json], values: Mapping[str, Json]) -> str | None:
    """Render a template that wants a list of tools even where there are none; None when that fails too."""
    try:
        return template.render(messages=messages, **{**values, "tools": []})
    except Exception:
        return None


def choose_template(
    metadata: Mapping[str, Any], path: Path, wanted: str | None = None, with_tools: bool = False
) -> Template:
    """Return the template to use.

    `wanted` is the name of one of the file's templates, of a built-in one, or Jinja source. Without it the file's
    is used, its `tool_use` when there are tools, and ChatML when it has none. A file that holds a built-in one's
    name instead of a template means that one. Raises EngineError for an unknown name.
    """
    own = templates_of(metadata)
    if wanted is None:
        name = TOOL_USE if TOOL_USE in own and (with_tools or DEFAULT not in own) else DEFAULT
        if name not in own:
            return Template(CHATML, f"{path}", chosen=False)
        return _meant(own[name], str(path))
    if wanted in own:
        return _meant(own[wanted], f"{path}: {wanted}")
    if wanted in builtin_names():
        return _meant(wanted, f"the built-in template {wanted}")
    if "{{" in wanted or "{%" in wanted:
        return Template(wanted, "--chat-template")
    names = ", ".join((*sorted(own.keys() - {DEFAULT}), *builtin_names()))
    raise EngineError(f"there is no chat template {wanted[:60]!r}; give a file, Jinja source, or one of: {names}")


def templates_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return a file's templates by name; the unnamed one is "default"."""
    found = {
        key.removeprefix(NAMED): value
        for key, value in metadata.items()
        if key.startswith(NAMED) and isinstance(value, str) and value.strip()
    }
    default = metadata.get(Keys.Tokenizer.CHAT_TEMPLATE)
    if isinstance(default, str) and default.strip():
        found[DEFAULT] = default
    return found


def _meant(source: str, where: str) -> Template:
    """Return the template of a source that may be nothing but a built-in template's name."""
    name = source.strip()
    if name == "chatml":
        return Template(CHATML, where)
    return Template(source, where, builtin=name if name in builtin_names() else None)


@cache
def builtin_names() -> tuple[str, ...]:
    """Return the names of the templates that are built into llama.cpp."""
    api = llama()
    count = api.llama_chat_builtin_templates(None, 0)
    names = (ctypes.c_char_p * count)()
    api.llama_chat_builtin_templates(names, count)
    return tuple((name or b"").decode() for name in names)


def render_builtin(name: str, messages: Sequence[Json], add_generation_prompt: bool) -> str:
    """Let llama.cpp render messages by one of its built-in templates, which know roles and texts only."""
    api = llama()
    kept = [(each["role"].encode(), str(each.get("content") or "").encode("utf-8", "replace")) for each in messages]
    chat = (api.llama_chat_message * len(kept))(*[api.llama_chat_message(*each) for each in kept])
    room = 256 + 2 * sum(len(role) + len(content) for role, content in kept)
    while True:
        buffer = ctypes.create_string_buffer(room)
        length = api.llama_chat_apply_template(name.encode(), chat, len(kept), add_generation_prompt, buffer, room)
        if length < 0:
            raise EngineError(f"llama.cpp cannot apply its built-in chat template {name!r}")
        if length <= room:
            return buffer.raw[:length].decode("utf-8", "replace")
        room = length
