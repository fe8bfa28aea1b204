"""Prompts as APIs spell them in, tokens out: a text, tokens, a mixture of both, or several of these."""

from typing import Any

from ..runner.model import Model, spell, tokenize
from ..runner.templates.chat_format import continued
from .errors import ApiError
from .requests import Prompt

MOST_PROMPTS = 256


def prompts_of(model: Model, prompt: Prompt, param: str = "prompt") -> list[list[int]]:
    """Return the tokens of each prompt. Raises ApiError and EngineError."""
    if isinstance(prompt, str | dict):
        return [continued(model, _text(prompt, param))]
    if not prompt:
        raise ApiError(400, f"{param} is empty", param)
    if any(isinstance(each, int) for each in prompt):
        return [mixed(model, prompt, param)]
    if len(prompt) > MOST_PROMPTS:
        raise ApiError(400, f"{param} has {len(prompt)} prompts; {MOST_PROMPTS} are the most", param)
    return [
        mixed(model, each, param) if isinstance(each, list) else continued(model, _text(each, param)) for each in prompt
    ]


def _text(prompt: Any, param: str) -> str:
    """Return a prompt's text; llama.cpp wraps one that may have images beside it."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, dict) or not isinstance(prompt.get("prompt_string"), str):
        raise ApiError(400, f"{param} is a text, tokens, or a list of these", param)
    if prompt.get("multimodal_data"):
        raise ApiError(400, f"{param}: there are no images or sounds here", param)
    return prompt["prompt_string"]


def spelled(model: Model, tokens: list[int]) -> str:
    """Return the text of tokens, those of control spelled out."""
    return b"".join(spell(model, token, special=True) for token in tokens).decode("utf-8", "replace")


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
