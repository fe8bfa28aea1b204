"""The lines that a person sends: messages are answered, what begins with a slash is done."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..formats.errors import EngineError
from ..formats.text_files import read_message_file
from ..formats.words import count
from .answers import speed_line, stream_answer
from .chat_help import HELP
from .chat_reader import typing_unseen
from .terminal import progress, say, warn

if TYPE_CHECKING:
    from ..runner.generation import Piece
    from ..runner.session import Session
    from ..runner.templates.message import Message

LEAVING = ("/quit", "/exit", "/bye")
BARE_LEAVING = ("exit", "quit")
NOT_SETTABLE = {"grammar", "own", "samplers", "dry_sequence_breakers", "logit_bias"}
REASONING = {"on": True, "off": False, "auto": None}
SHOWN = 70


class Leave(Exception):
    """The conversation is over."""


@dataclass
class Talk:
    """A session, and the text files that the next message begins with."""

    session: "Session"
    attached: list[str] = field(default_factory=list)

    def take(self, line: str) -> None:
        """Answer a message or obey a command. Raises Leave for /quit, MoeGgufError for what fails."""
        word, _, rest = line.partition(" ")
        word, rest = word.strip(), rest.strip()
        act = {
            "/help": self.help,
            "/?": self.help,
            "/clear": self.clear,
            "/reset": self.clear,
            "/system": self.system,
            "/regen": self.regenerate,
            "/regenerate": self.regenerate,
            "/read": self.read,
            "/set": self.set,
            "/save": self.save,
            "/load": self.load,
            "/stats": self.stats,
        }.get(word)
        if line.startswith("//") or (line.startswith(" ") and line.lstrip().startswith("/")):
            self.ask(line[1:] if line.startswith("//") else line.lstrip())
        elif word in LEAVING or (line.strip() in BARE_LEAVING and not line.startswith(" ")):
            raise Leave
        elif act:
            act(rest)
        elif word.startswith("/") and not is_path(word):
            say(f"(no command {word}; /help lists them, /{word} sends it as a message)")
        else:
            self.ask(line)

    def ask(self, text: str) -> None:
        """Send a message, the attached files in front of it."""
        text, self.attached = "\n\n".join((*self.attached, text)), []
        show_answer(self.session, self.session.ask(text))

    def help(self, _: str) -> None:
        """Show the commands."""
        say(HELP)

    def clear(self, _: str) -> None:
        """Forget the conversation."""
        self.session.reset()
        self.attached.clear()
        say("(a new conversation)")

    def system(self, text: str) -> None:
        """Set the system message, or show it."""
        if not text:
            say(self.session.system or "(no system message)")
            return
        self.session.system = text
        self.session.reset()
        say("(a new conversation with this system message)")

    def regenerate(self, _: str) -> None:
        """Answer the last message again."""
        pieces = self.session.regenerate()
        show_answer(self.session, pieces) if pieces else say("(there is nothing to answer yet)")

    def read(self, name: str) -> None:
        """Attach a text file."""
        if not name:
            say("(/read needs a file name)")
            return
        path = named_path(name)
        text = read_message_file(path)
        self.attached.append(text)
        say(f"({path}, {count(len(text), 'character')}, goes in front of your next message)")

    def set(self, text: str) -> None:
        """Change an option of sampling, or show all."""
        name, _, value = text.partition(" ")
        if not name:
            say(settings(self.session))
        else:
            change_setting(self.session, name.strip("-").replace("-", "_"), value.strip())

    def save(self, name: str) -> None:
        """Write the conversation."""
        from ..runner.conversation import save

        forced = name.startswith("-f ")
        name = name.removeprefix("-f ").strip()
        if not name:
            say("(/save needs a file name)")
            return
        path = named_path(name)
        if path.exists() and not forced and not agrees(f"{path} exists; overwrite it?"):
            say(f"({path} exists and was left as it is; /save -f {name} overwrites it)")
            return
        try:
            save(path, self.session.everything())
        except OSError as error:
            say(f"({path}: {error.strerror})")
            return
        say(f"({count(len(self.session.messages), 'message')} saved to {path})")

    def load(self, name: str) -> None:
        """Go on with a saved conversation, and show where it stands."""
        from ..runner.conversation import load

        if not name:
            say("(/load needs a file name)")
            return
        path = named_path(name)
        self.session.replace_by(load(path))
        say(f"({count(len(self.session.messages), 'message')} loaded from {path})")
        for line in where_it_stands(self.session):
            say(line)

    def stats(self, _: str) -> None:
        """Print the model, how full the context is, and the last answer's speed."""
        engine = self.session.engine
        used = sum(map(len, engine.cached))
        say(f"{engine.model.path}: {engine.n_threads} threads, {used} of {engine.n_ctx} tokens of context used")
        speed = self.session.speed()
        if speed:
            say(speed_line(speed))


def is_path(word: str) -> bool:
    """Tell whether a word that begins with a slash is a path rather than a mistyped command."""
    return "/" in word[1:] or Path(word).exists()


def named_path(name: str) -> Path:
    """Return the path that a name means: with its quotes taken off, and ~ replaced."""
    if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
        name = name[1:-1]
    return Path(name).expanduser()


def agrees(question: str) -> bool:
    """Ask a question at the terminal; through a pipe the answer is no."""
    if not sys.stdin.isatty():
        return False
    try:
        return click.confirm(question, default=False, err=True)
    except click.Abort:
        return False


def where_it_stands(session: "Session") -> Iterator[str]:
    """Yield lines about a conversation that goes on: its system message and its last two messages."""
    if session.system:
        yield f"system: {shortened(session.system)}"
    for message in session.messages[-2:]:
        yield f"{message.role}: {shortened(summary_of(message))}"
    if session.messages and session.messages[-1].role in ("user", "tool"):
        yield "(the last message has no answer yet; /regen answers it)"


def summary_of(message: "Message") -> str:
    """Return a message's text, or what it holds instead."""
    return message.text or ", ".join(f"calls {call.name}" for call in message.tool_calls) or "(empty)"


def shortened(text: str) -> str:
    """Return a text's beginning, in one line that steers no terminal."""
    line = "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def settings(session: "Session") -> str:
    """Return what `/set` can change, as it is now."""
    lines = [f"{one.name} {getattr(session.sampling, one.name)}" for one in settable(session)]
    reasoning = next(name for name, value in REASONING.items() if value is session.format.options.reasoning)
    return "\n".join([*lines, f"n_predict {session.n_predict}", f"reasoning {reasoning}"])


def settable(session: "Session"):
    """Return the fields of the sampling options that a line can set."""
    return [one for one in fields(session.sampling) if one.name not in NOT_SETTABLE]


def change_setting(session: "Session", name: str, value: str) -> None:
    """Change one option. Raises EngineError for a value that it cannot have."""
    from ..runner.sampling import check_options

    name = {"temperature": "temp", "n": "n_predict", "predict": "n_predict"}.get(name, name)
    known = {one.name: one for one in settable(session)}
    if name == "reasoning" and value in REASONING:
        session.chat = replace(session.format, options=replace(session.format.options, reasoning=REASONING[value]))
    elif name == "n_predict":
        session.n_predict = max(int(_as_number(name, value, whole=True)), -1)
    elif name in known:
        before = getattr(session.sampling, name)
        number = _as_number(name, value, whole=isinstance(before, int) or name == "seed")
        changed = replace(session.sampling, **{name: bool(number) if isinstance(before, bool) else number})
        check_options(session.engine.model, changed)
        session.sampling = changed
    else:
        raise EngineError(f"there is no setting {name!r} with the value {value!r}; /set shows them")
    say(f"({name} {value})")


def _as_number(name: str, value: str, whole: bool):
    words = {"on": 1, "true": 1, "off": 0, "false": 0, "none": -1}
    with suppress(ValueError):
        return words[value] if value in words else int(value) if whole else float(value)
    raise EngineError(f"{name} is a number, not {value!r}")


def show_answer(session: "Session", pieces: "Iterator[Piece]") -> None:
    """Print an answer as it comes, then what there is to say about it. Ctrl-C stops it."""
    from ..runner.interrupt import on_interrupt

    engine = session.engine
    session.on_prompt = PromptProgress()
    with on_interrupt(engine.cancel), typing_unseen():
        finish = stream_answer(pieces, wrap=True)
    session.on_prompt.close()
    engine.resume()
    for remark in session.remarks:
        warn(remark)
    if session.dropped:
        one = "the oldest message no longer fits into the context and is left out from here on"
        more = f"the {session.dropped} oldest messages no longer fit into the context and are left out from here on"
        say(f"({one if session.dropped == 1 else more}; /save keeps them)")
    if finish == "context":
        say(f"(the context of {engine.n_ctx} tokens is full; the answer is cut)")
    if finish == "cancelled":
        say("(stopped)")
    speed = session.speed()
    if speed and speed.n_generated:
        say(speed_line(speed))
    if finish == "cancelled" and not sys.stdin.isatty():
        raise KeyboardInterrupt


class PromptProgress:
    """Shows on a terminal how much of a long prompt is read, and takes it off the screen before the answer."""

    def __init__(self) -> None:
        self._bar = None

    def __call__(self, done: int, total: int) -> None:
        """Show that so many tokens are read."""
        if self._bar is None:
            self._bar = progress(total, "reading the prompt", unit=" tokens", delay=0.5, leave=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
