"""`moe-gguf chat`: a conversation with a model at the terminal, or line by line through a pipe."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..formats.errors import MoeGgufError
from ..formats.text_files import plain_text
from ..formats.words import count
from .answers import speed_line, stream_answer, tolerate_any_text
from .loading import load_request, loading_options
from .models import MODEL, catalogue_path
from .sampling_options import build_sampling, sampling_options, unescape
from .template_options import build_template, template_options
from .terminal import TERMINAL, say, verbosity, warn

if TYPE_CHECKING:
    from ..runner.generation import Piece
    from ..runner.session import Session

HELP = """\
/help          show this
/reset         forget the conversation
/system TEXT   set the system message and forget the conversation; without TEXT, show it
/regen         answer the last message again
/save FILE     write the conversation as JSON
/load FILE     go on with a saved conversation
/stats         show speed and how full the context is
/quit          leave (also Ctrl-D)

Enter sends; Alt-Enter, or a backslash at the end of a line, begins another line. Ctrl-C stops an answer."""


class Leave(Exception):
    """The conversation is over."""


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.option("-sys", "--system", "--system-prompt", "system", default=None, help="The system message.")
@click.option(
    "-n",
    "--n-predict",
    "--predict",
    "n_predict",
    type=click.IntRange(min=-1),
    default=-1,
    show_default=True,
    help="Most tokens of one answer; -1 is no limit.",
)
@click.option(
    "-r", "--reverse-prompt", "--stop", "stops", multiple=True, help="End an answer at this text; repeatable."
)
@template_options
@sampling_options
@loading_options
@verbosity
def command(model: str | None, system: str | None, n_predict: int, stops: tuple[str, ...], **values: Any) -> None:
    """Talk to MODEL, a GGUF file or a name of the catalogue, through its chat template.

    With a pipe instead of a terminal each line is a message. /help lists the commands.
    """
    from ..jobs import chat as job

    request = job.Request(
        model=model,
        catalogue=catalogue_path(),
        load=load_request(values),
        sampling=build_sampling(values),
        template=build_template(values),
        n_predict=n_predict,
        stops=tuple(unescape(stop) for stop in stops),
        system=unescape(system or ""),
    )
    prepared = job.prepare(request)
    tolerate_any_text()
    with job.opened_session(prepared, TERMINAL) as session:
        engine = session.engine
        name = engine.model.file.metadata.get("general.name") or prepared.path.stem
        say(f"{name}, {engine.n_threads} threads, context of {engine.n_ctx} tokens. /help shows the commands.")
        for line in messages():
            try:
                take_line(session, line)
            except Leave:
                break
            except MoeGgufError as error:
                click.echo(f"moe-gguf: {' '.join(str(error).split())}", err=True)


def messages() -> Iterator[str]:
    """Yield what the user types, until the end of the input; a line that ends in a backslash goes on."""
    read = terminal_reader() if sys.stdin.isatty() else piped_reader()
    text = ""
    while True:
        try:
            line = read(bool(text))
        except EOFError:
            break
        except KeyboardInterrupt:
            say("(/quit or Ctrl-D leaves)")
            text = ""
            continue
        if line.endswith("\\"):
            text += line[:-1] + "\n"
            continue
        text, complete = "", text + line
        if complete.strip():
            yield complete
    if text.strip():
        yield text


def piped_reader() -> Callable[[bool], str]:
    """Return a reader of stdin's lines that raises EOFError at the end."""

    def read(_: bool) -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return plain_text(line).rstrip("\r\n")

    return read


def terminal_reader() -> Callable[[bool], str]:
    """Return a reader with line editing and a history that outlives the program."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    history: History = InMemoryHistory()
    folder = Path(click.get_app_dir("moe-gguf"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.close(os.open(folder / "history", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        history = FileHistory(str(folder / "history"))
    except OSError as error:
        warn(f"what you type is not remembered: {error}")
    words = WordCompleter([line.split()[0] for line in HELP.splitlines() if line.startswith("/")], sentence=True)
    session: PromptSession[str] = PromptSession(
        history=history, key_bindings=keys, multiline=True, completer=words, complete_while_typing=False
    )
    return lambda continued: session.prompt("… " if continued else "> ", prompt_continuation="… ")


def take_line(session: "Session", line: str) -> None:
    """Answer a message or obey a command. Raises Leave for /quit, MoeGgufError for what fails."""
    word, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if not word.startswith("/"):
        show_answer(session, session.ask(line))
    elif word in ("/quit", "/exit", "/bye"):
        raise Leave
    elif word == "/help":
        say(HELP)
    elif word == "/reset":
        session.reset()
        say("(a new conversation)")
    elif word == "/system":
        set_system(session, rest)
    elif word in ("/regen", "/regenerate"):
        pieces = session.regenerate()
        show_answer(session, pieces) if pieces else say("(there is nothing to answer yet)")
    elif word in ("/save", "/load"):
        store(session, word, rest)
    elif word == "/stats":
        show_stats(session)
    else:
        say(f"(no command {word}; /help lists them)")


def set_system(session: "Session", text: str) -> None:
    """Set the system message, or show it."""
    if not text:
        say(session.system or "(no system message)")
        return
    session.system = text
    session.reset()
    say("(a new conversation with this system message)")


def store(session: "Session", word: str, name: str) -> None:
    """Save or load a conversation."""
    from ..runner.conversation import load, save

    if not name:
        say(f"({word} needs a file name)")
        return
    path = Path(name).expanduser()
    if word == "/save":
        try:
            save(path, session.everything())
        except OSError as error:
            say(f"({path}: {error.strerror})")
            return
    else:
        session.replace_by(load(path))
    say(f"({count(len(session.messages), 'message')} {'saved to' if word == '/save' else 'loaded from'} {path})")


def show_answer(session: "Session", pieces: Iterator["Piece"]) -> None:
    """Print an answer as it comes, then what there is to say about it. Ctrl-C stops it."""
    from ..runner.interrupt import on_interrupt

    engine = session.engine
    with on_interrupt(engine.cancel):
        finish = stream_answer(pieces)
    engine.resume()
    for remark in session.remarks:
        warn(remark)
    if session.dropped:
        one = "the oldest message no longer fits into the context and was dropped"
        more = f"the {session.dropped} oldest messages no longer fit into the context and were dropped"
        say(f"({one if session.dropped == 1 else more})")
    if finish == "context":
        say(f"(the context of {engine.n_ctx} tokens is full; the answer is cut)")
    if finish == "cancelled":
        say("(stopped)")
    speed = session.speed()
    if speed and speed.n_generated:
        say(speed_line(speed))


def show_stats(session: "Session") -> None:
    """Print the model, how full the context is, and the last answer's speed."""
    engine = session.engine
    used = sum(map(len, engine.cached))
    say(f"{engine.model.path}: {engine.n_threads} threads, {used} of {engine.n_ctx} tokens of context used")
    speed = session.speed()
    if speed:
        say(speed_line(speed))
