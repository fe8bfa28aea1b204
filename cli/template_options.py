"""The options about the chat template that `chat` and `generate` share, by llama.cpp's names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..runner.templates.chat_format import TemplateOptions

Command = TypeVar("Command", bound=Callable[..., Any])

REASONING = {"on": True, "off": False, "auto": None}


def template_options(command: Command) -> Command:
    """Give a command the template's options; `build_template` reads their values."""
    flags = [
        click.option(
            "--chat-template",
            default=None,
            metavar="NAME|FILE|JINJA",
            help="Chat template instead of the file's: one of its named ones (tool_use, ...), one that is built into "
            "llama.cpp (chatml, llama3, mistral-v7, ...), a file, or Jinja source.",
        ),
        click.option(
            "--chat-template-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Read the chat template from this file.",
        ),
        click.option(
            "--chat-template-kwargs",
            default=None,
            metavar="JSON",
            help="Values for the template, e.g. '{\"enable_thinking\": false}'.",
        ),
        click.option(
            "-rea",
            "--reasoning",
            type=click.Choice(tuple(REASONING)),
            default="auto",
            show_default=True,
            help="Let the model think before it answers, or not; auto leaves it to the template.",
        ),
        click.option(
            "--reasoning-format",
            type=click.Choice(("auto", "none", "deepseek", "deepseek-legacy")),
            default="auto",
            show_default=True,
            help="Thoughts: none leaves them in the answer, auto and deepseek take them out, deepseek-legacy does "
            "both.",
        ),
    ]
    for flag in reversed(flags):
        command = flag(command)
    return command


def build_template(values: dict[str, Any]) -> "TemplateOptions":
    """Take the template's options out of a command's values. Raises click.UsageError for what is no JSON object."""
    from ..runner.templates.chat_format import TemplateOptions

    name, path = values.pop("chat_template"), values.pop("chat_template_file")
    if name is not None and path is not None:
        raise click.UsageError("give --chat-template or --chat-template-file, not both")
    if name is not None and "{" not in name and Path(name).is_file():
        name, path = None, Path(name)
    return TemplateOptions(
        chat_template=name,
        chat_template_file=path,
        kwargs=_kwargs(values.pop("chat_template_kwargs")),
        reasoning=REASONING[values.pop("reasoning")],
        reasoning_format=values.pop("reasoning_format"),
    )


def _kwargs(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"this is no JSON: {error}", param_hint="--chat-template-kwargs") from None
    if not isinstance(found, dict):
        raise click.BadParameter('give a JSON object: {"name": value}', param_hint="--chat-template-kwargs")
    return found
