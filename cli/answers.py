"""What `chat` and `generate` share: printing an answer as it comes, and what it took."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from ..formats.words import count
from .terminal import level
from .visible import visible_answer
from .word_wrap import WordWrap

if TYPE_CHECKING:
    from ..runner.generation import Piece, Speed

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class AnswerPrinter:
    """Prints an answer's pieces as they come, and ends what was printed with a line break.

    What is said goes to stdout, thoughts to stderr. On a terminal words are kept whole with `wrap`, thoughts are dim,
    and characters that could steer it are shown instead.
    """

    def __init__(self, wrap: bool = False) -> None:
        self._said = _Column(sys.stdout, wrap)
        self._thought = _Column(sys.stderr, wrap, dim=True)

    def __enter__(self) -> "AnswerPrinter":
        return self

    def __exit__(self, *_: object) -> None:
        self._thought.end()
        self._said.end()

    def show(self, piece: "Piece") -> None:
        """Print a piece."""
        if piece.thought and level() >= 0:
            self._thought.show(piece.thought)
        if piece.text:
            self._thought.end()
        if piece.text or not piece.thought:
            self._said.show(piece.text)


class _Column:
    """One of the two texts of an answer, on its stream."""

    def __init__(self, stream: "object", wrap: bool, dim: bool = False) -> None:
        self._stream = stream
        self._on_terminal = bool(getattr(stream, "isatty", lambda: False)())
        self._wrap = WordWrap() if wrap and self._on_terminal else None
        self._dim = dim and self._on_terminal
        self._last: str | None = None

    def show(self, text: str) -> None:
        """Print what is certain of a text."""
        text = visible_answer(text) if self._on_terminal else text
        self._print(self._wrap.push(text) if self._wrap else text)

    def end(self) -> None:
        """Print what was held back, and a line break if the line is not ended."""
        if self._last is None:
            return
        self._print(self._wrap.flush() if self._wrap else "")
        if self._last != "\n":
            click.echo(file=self._stream)  # type: ignore[arg-type]
        self._last = None
        self._wrap = WordWrap() if self._wrap else None

    def _print(self, text: str) -> None:
        self._last = text[-1:] or self._last or ""
        if text:
            shown = f"{DIM}{text}{PLAIN}" if self._dim else text
            click.echo(shown, nl=False, file=self._stream)  # type: ignore[arg-type]


def stream_answer(pieces: Iterable["Piece"], wrap: bool = False) -> str:
    """Print pieces as they come, ended by a line break; return the finish reason ("cancelled" after Ctrl-C)."""
    from ..runner.engine import Cancelled

    finish = ""
    with AnswerPrinter(wrap) as printer:
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
