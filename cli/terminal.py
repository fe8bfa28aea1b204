"""What every verb shares with the person at the terminal: messages, progress, JSON, and -v/-q.

Reports go to stdout, everything else to stderr, so that a pipe gets only what was asked for.
"""

import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..formats.errors import by_repository
from .visible import visible, visible_json

Command = TypeVar("Command", bound=Callable[..., Any])

LEVEL = "moe_gguf.level"


def verbosity(command: Command) -> Command:
    """Give a command -v/--verbose and -q/--quiet, which `say`, `detail` and `progress` obey."""

    def remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            ctx.meta[LEVEL] = 1 if parameter.name == "verbose" else -1

    for names, text in (
        (("-q", "--quiet"), "Print only the result and errors."),
        (("-v", "--verbose"), "Print details."),
    ):
        option = click.option(*names, is_flag=True, expose_value=False, callback=remember, help=text)
        command = option(command)
    return command


def level() -> int:
    """Return 1 for verbose, -1 for quiet, else 0."""
    context = click.get_current_context(silent=True)
    return context.meta.get(LEVEL, 0) if context else 0


def say(message: str) -> None:
    """Print a message for the person at the terminal, unless -q."""
    if level() >= 0:
        click.echo(visible(message), err=True)


def detail(message: str) -> None:
    """Print a message that only -v asks for."""
    if level() > 0:
        click.echo(visible(message), err=True)


def warn(message: str) -> None:
    """Print a warning; -q does not silence it."""
    click.echo(visible(f"warning: {by_repository(' '.join(message.split()))}"), err=True)


def emit_json(report: Any) -> None:
    """Print a report as JSON on stdout."""
    click.echo(visible_json(json.dumps(report, indent=2, ensure_ascii=False)))


def echo(report: str) -> None:
    """Print a part of a report on stdout; names in it come from files."""
    click.echo(visible(report))


class Terminal:
    """The Listener of the command line: messages and bars on stderr, as -v and -q say."""

    say = staticmethod(say)
    detail = staticmethod(detail)
    warn = staticmethod(warn)

    def bar(self, total: int, description: str, unit: str = "B", delay: float = 0) -> Any:
        """Return a tqdm bar; see `progress`."""
        return progress(total, description, unit, delay)


TERMINAL = Terminal()


def format_bytes(n_bytes: float) -> str:
    """Return a size in decimal units with four digits: "26.44 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.95 or unit == "GB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.{1 if n_bytes >= 100 else 2}f} {unit}"


def format_count(number: float) -> str:
    """Return a number of parameters with three digits: "46.7 B", "135 M"."""
    for unit in ("", "K", "M", "B"):
        if number < 999.5 or unit == "B":
            break
        number /= 1000
    digits = 0 if number >= 99.95 or not unit else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f} {unit}".rstrip()


def progress(total: int, description: str, unit: str = "B", delay: float = 0, leave: bool = True) -> Any:
    """Return a tqdm bar on stderr over `total` units (bytes are scaled), shown after `delay` seconds; none with -q."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=visible(description),
        unit=unit,
        unit_scale=unit == "B",
        unit_divisor=1000,
        disable=True if level() < 0 or sys.stderr is None else None,
        dynamic_ncols=True,
        delay=delay,
        leave=leave,
    )
