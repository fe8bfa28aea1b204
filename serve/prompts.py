"""Prompts as APIs spell them in, tokens out: a text, tokens, a mixture of both, or several of these."""

from typing import Any

from ..runner.model import Model, tokenize
from ..runner.templates.chat_format import continued
from .errors import ApiError

MOST_PROMPTS = 256


def prompts_of(model: Model, prompt: str | list[Any], param: str = "prompt") -> list[list[int]]:
    """Return the tokens of each prompt. Raises ApiError and EngineError."""
    if isinstance(prompt, str):
        return [continued(model, prompt)]
    if not prompt:
        raise ApiError(400, f"{param} is empty", param)
    if all(isinstance(each, str) for each in prompt) or all(isinstance(each, list) for each in prompt):
        if len(prompt) > MOST_PROMPTS:
            raise ApiError(400, f"{param} has {len(prompt)} prompts; {MOST_PROMPTS} are the most", param)
        return [continued(model, each) if isinstance(each, str) else mixed(model, each, param) for each in prompt]
    return [mixed(model, prompt, param)]


def mixed(model: Model, parts: list[Any], param: str = "prompt", add_special: bool = True) -> list[int]:
    """Return the tokens of a list of tokens and texts; only a text at the beginning gets the file's own tokens."""
    found: list[int] = []
    for number, part in enumerate(parts):
        if isinstance(part, str):
            found += tokenize(model, part, add_special=add_special and number == 0)
        elif isinstance(part, int) and not isinstance(part, bool) and 0 <= part < model.n_vocab:
            found.append(part)
        else:
            what = f"{part} is no token of {model.n_vocab}" if isinstance(part, int) else "is text, tokens, or both"
            raise ApiError(400, f"{param}: {what}", param)
    return found
