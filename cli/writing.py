"""The options of the verbs that write models, said once: convert, quantize and merge share them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..jobs.opening import GateRequest


Command = TypeVar("Command", bound=Callable[..., Any])

GATE_BASES = ("f32", "bf16", "q8_0")


def gate_options(command: Command) -> Command:
    """Give a command that takes a recipe --gates and --gate-base."""
    options = (
        click.option(
            "--gates",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="For a recipe: take the routers from this file; if it does not exist, save them to it. One that was "
            "computed from other prompts or models is refused.",
        ),
        click.option(
            "--gate-base",
            type=click.Choice(GATE_BASES, case_sensitive=False),
            default=None,
            show_default="bf16",
            help="For a recipe: type of the base's GGUF that hidden states come from.",
        ),
    )
    return _with(command, options)


def force_option(*names: str) -> Callable[[Command], Command]:
    """Give a command --force, or what it is called there."""
    what = "Overwrite existing files; discard an unfinished run that does not match."
    return click.option(*names, "force", is_flag=True, help=what)


def writing_options(command: Command) -> Command:
    """Give a command what convert and quantize have in common."""
    options = (
        click.option("--split-max-size", metavar="N(M|G)", help="Write shards of at most this size, e.g. 50G."),
        click.option(
            "--pre-tokenizer",
            metavar="NAME",
            help="For a checkpoint: llama.cpp's name of the pre-tokenizer, if it is not recognized.",
        ),
        gate_options,
        click.option("--allow-nonfinite", is_flag=True, help="Continue when a weight is NaN or infinite."),
        click.option("-t", "--threads", type=click.IntRange(1), help="Threads; by default one per core."),
        click.option("--dry-run", is_flag=True, help="Print the plan and exact sizes; write nothing."),
        click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
    )
    return _with(command, options)


def gate_request(options: Mapping[str, Any]) -> "GateRequest":
    """Return what the options of `gate_options` ask for."""
    from ..jobs.opening import GateRequest

    return GateRequest(options["gates"], options["gate_base"])


def _with(command: Command, options: tuple[Callable[[Any], Any], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
