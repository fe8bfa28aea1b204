"""What a person types, or what a pipe brings: messages, one by one."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import click

from ..formats.text_files import lines_of
from .chat_help import COMMANDS
from .process import Terminated
from .terminal import say, warn

QUOTES = '"""'


def messages(first: str | None = None) -> Iterator[str]:
    """Yield messages until the end of the input, `first` before all others.

    A message is a line, or what stands between two lines that begin and end with three quotes.
    """
    if first is not None:
        yield first
    read = terminal_reader() if sys.stdin.isatty() else piped_reader()
    open_lines: list[str] | None = None
    while True:
        try:
            line = read(open_lines is not None)
        except EOFError:
            break
        except KeyboardInterrupt as error:
            # what comes through a pipe cannot go on, nor can a program that was asked to end
            if not sys.stdin.isatty() or isinstance(error, Terminated):
                raise
            say("(/quit or Ctrl-D leaves)")
            open_lines = None
            continue
        if open_lines is None and line.lstrip().startswith(QUOTES):
            open_lines, line = [], line.lstrip()[len(QUOTES) :]
        if open_lines is not None:
            text, closed, _ = line.partition(QUOTES)
            open_lines.append(text)
            if not closed:
                continue
            line, open_lines = "\n".join(open_lines).strip("\n"), None
        if line.strip():
            yield line
    if open_lines and "".join(open_lines).strip():
        yield "\n".join(open_lines).strip("\n")


def piped_reader() -> Callable[[bool], str]:
    """Return a reader of stdin's lines that raises EOFError at the end."""
    lines = lines_of(sys.stdin, "standard input")

    def read(_: bool) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    return read


def terminal_reader() -> Callable[[bool], str]:
    """Return a reader with line editing and a history that outlives the program.

    The prompt goes to stderr when stdout is no terminal: only answers belong there.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output.defaults import create_output

    keys = KeyBindings()
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    session: PromptSession[str] = PromptSession(
        history=kept_history(),
        key_bindings=keys,
        multiline=True,
        completer=WordCompleter(list(COMMANDS), sentence=True),
        complete_while_typing=False,
        enable_suspend=True,
        output=create_output(sys.stdout if sys.stdout.isatty() else sys.stderr),
    )
    return lambda continued: session.prompt("… " if continued else "> ", prompt_continuation="… ")


def kept_history():
    """Return the history of what was typed, from a file that nobody else may read; in memory where that fails."""
    import os
    from pathlib import Path

    from prompt_toolkit.history import FileHistory, InMemoryHistory

    folder = Path(click.get_app_dir("moe-gguf"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.close(os.open(folder / "history", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except OSError as error:
        warn(f"what you type is not remembered: {error}")
        return InMemoryHistory()
    return FileHistory(str(folder / "history"))


@contextmanager
def typing_unseen() -> Iterator[None]:
    """Keep what is typed inside the block from the screen; it waits, and is read when the next line is.

    Ctrl-C works on. Where there is no terminal, or none that can do this, nothing changes.
    """
    try:
        import termios

        terminal = sys.stdin.fileno()
        if not os.isatty(terminal):
            raise ValueError
        before = termios.tcgetattr(terminal)
    except (ImportError, OSError, ValueError, AttributeError):
        yield
        return
    unseen = list(before)
    unseen[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(terminal, termios.TCSANOW, unseen)
    try:
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(terminal, termios.TCSANOW, before)
