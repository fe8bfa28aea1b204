"""What `chat` and `generate` share: printing an answer as it comes, and what it took."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from ..formats.words import count

if TYPE_CHECKING:
    from ..runner.generation import Piece, Speed

INVISIBLE = {code: None for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if chr(code) not in "\n\t"}


class AnswerPrinter:
    """Prints an answer's pieces as they come, and ends what was printed with a line break.

    Characters that could steer a terminal are left out when stdout is one.
    """

    def __init__(self) -> None:
        self._on_terminal = sys.stdout.isatty()
        self._shown: str | None = None

    def __enter__(self) -> "AnswerPrinter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown is not None and not self._shown.endswith("\n"):
            click.echo()

    def show(self, piece: "Piece") -> None:
        """Print a piece."""
        self._shown = self._shown or ""
        if piece.text:
            self._shown = piece.text.translate(INVISIBLE) if self._on_terminal else piece.text
            click.echo(self._shown, nl=False)


def stream_answer(pieces: Iterable["Piece"]) -> str:
    """Print pieces as they come, ended by a line break; return the finish reason ("cancelled" after Ctrl-C)."""
    from ..runner.engine import Cancelled

    finish = ""
    with AnswerPrinter() as printer:
        try:
            for piece in pieces:
                finish = piece.finish or finish
                printer.show(piece)
        except Cancelled:
            finish = "cancelled"
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
