"""The chat template, from wherever a checkpoint keeps it.

In: a checkpoint folder. Out: `ChatTemplates`, Jinja source, the default and the named ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

from ..formats.checkpoint import ADDITIONAL_TEMPLATES
from ..formats.errors import TokenizerError
from .tokenizer_json import read_object, read_text


@dataclass(frozen=True)
class ChatTemplates:
    """The default chat template and the named ones (tool_use, rag, ...), as Jinja source."""

    default: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)


def read_chat_templates(folder: Path) -> ChatTemplates:
    """Read tokenizer_config.json's template, else chat_template.jinja (with additional_chat_templates/), else .json.

    The order is that of llama.cpp (gguf-py/gguf/vocab.py `SpecialVocab`). Raises TokenizerError.
    """
    configured = read_object(folder / "tokenizer_config.json").get("chat_template")
    if configured is not None:
        return _templates(configured, folder / "tokenizer_config.json")
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        more = sorted((folder / ADDITIONAL_TEMPLATES).glob("*.jinja"))
        named = {_plain(path.stem): read_text(path) for path in more if path.is_file()}
        return ChatTemplates(named.pop("default", read_text(jinja)), named)
    in_json = read_object(folder / "chat_template.json").get("chat_template")
    if in_json is not None:
        return _templates(in_json, folder / "chat_template.json")
    return ChatTemplates()


def _templates(value: Any, path: Path) -> ChatTemplates:
    if isinstance(value, str):
        return ChatTemplates(_unicode(value, path))
    if not isinstance(value, list):
        raise TokenizerError(f"{path}: 'chat_template' is neither a text nor a list of named templates")
    templates = dict(_named(entry, path) for entry in value)
    default = templates.pop("default", None)
    return ChatTemplates(default, templates)


def _named(entry: Any, path: Path) -> tuple[str, str]:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    template = entry.get("template") if isinstance(entry, Mapping) else None
    if not isinstance(name, str) or not isinstance(template, str) or not name:
        raise TokenizerError(f"{path}: an entry of 'chat_template' has no 'name' or no 'template'")
    return _plain(name), _unicode(template, path)


def _unicode(template: str, path: Path) -> str:
    """Refuse half characters, which JSON can spell and no file can hold."""
    if any("\ud800" <= c <= "\udfff" for c in template):
        raise TokenizerError(f"{path}: 'chat_template' is not valid Unicode")
    return template


def _plain(name: str) -> str:
    """Replace what GGUF keys should not hold (gguf-py `GGUFWriter.add_chat_template` does the same)."""
    return "".join(c if c in ascii_letters + digits else "_" for c in name)
