"""A model's chat template without the model: from a file's metadata, with its special tokens, rendered."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf.constants import Keys

from ..formats.errors import EngineError

if TYPE_CHECKING:
    from ..runner.templates.source import Template

Message = Mapping[str, str]


def template_of(metadata: Mapping[str, Any], path: Path) -> "Template | None":
    """Return the file's chat template; None when it has none of its own, or one that is no Jinja."""
    from ..runner.templates.source import choose_template

    try:
        template = choose_template(metadata, path)
    except EngineError:
        return None
    return template if template.chosen else None


def special_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens that templates are given, spelled as in the vocabulary."""
    from ..runner.templates.chat_format import SPECIAL

    tokens = metadata.get(Keys.Tokenizer.LIST)
    numbers = {name: metadata.get(key) for name, key in SPECIAL.items()}
    return {
        name: str(tokens[number])
        for name, number in numbers.items()
        if isinstance(number, int) and isinstance(tokens, list) and 0 <= number < len(tokens)
    }


def rendered(template: "Template", messages: Sequence[Message], special: Mapping[str, str]) -> str | None:
    """Return Jinja's text up to where the answer begins; None where the template refuses. A date in it is "{date}"."""
    values: dict[str, Any] = {"bos_token": "", "eos_token": "", **special, "tools": None, "documents": None}
    values |= {"add_generation_prompt": True, "strftime_now": lambda layout: "{date}"}
    try:
        return template.render([dict(message) for message in messages], values)
    except EngineError:
        return None
