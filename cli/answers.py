"""What `chat` and `generate` share: opening an engine, printing an answer as it comes, and what it took."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..formats.llamacpp import listening
from ..formats.words import count
from .loading import load_model
from .terminal import level

if TYPE_CHECKING:
    from ..runner.engine import Engine
    from ..runner.generation import Piece, Speed

INVISIBLE = {code: None for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if chr(code) not in "\n\t"}


@contextmanager
def opened_engine(path: Path, values: dict[str, Any]) -> Iterator["Engine"]:
    """Load a model as the loading flags say; llama.cpp's log goes to stderr with -v."""
    verbose = level() > 0
    with listening(lambda _, text: click.echo(text, nl=False, err=True) if verbose else None):
        model, engine = load_model(path, values)
        with model, engine:
            yield engine


def stream_answer(pieces: Iterable["Piece"]) -> str:
    """Print pieces as they come, ended by a line break; return the finish reason ("cancelled" after Ctrl-C).

    Characters that could steer a terminal are left out when stdout is one.
    """
    from ..runner.engine import Cancelled

    finish, shown = "", ""
    on_terminal = sys.stdout.isatty()
    try:
        for piece in pieces:
            finish = piece.finish or finish
            if piece.text:
                shown = piece.text.translate(INVISIBLE) if on_terminal else piece.text
                click.echo(shown, nl=False)
    except Cancelled:
        finish = "cancelled"
    if not shown.endswith("\n"):
        click.echo()
    return finish


def tolerate_any_text() -> None:
    """Let stdout take any character, whatever the terminal's encoding."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure:
        reconfigure(errors="replace")


def speed_line(speed: "Speed") -> str:
    """Return what an answer took, in one line."""
    new = speed.n_prompt - speed.n_reused
    reused = f" ({speed.n_reused} reused)" if speed.n_reused else ""
    return (
        f"[{count(speed.n_generated, 'token')}, {speed.generated_per_second:.1f} tokens/s; "
        f"prompt {count(new, 'token')}{reused}, "
        f"{speed.prompt_per_second:.1f} tokens/s]"
    )


def speed_report(speed: "Speed") -> dict[str, Any]:
    """Return what an answer took, for --json."""
    return {
        "n_prompt": speed.n_prompt,
        "n_reused": speed.n_reused,
        "n_generated": speed.n_generated,
        "prompt_seconds": round(speed.prompt_seconds, 4),
        "generation_seconds": round(speed.generation_seconds, 4),
        "prompt_per_second": round(speed.prompt_per_second, 2),
        "generated_per_second": round(speed.generated_per_second, 2),
    }
