"""`moe-gguf chat`: a conversation with a model at the terminal, or line by line through a pipe."""

from typing import Any

import click

from ..formats.errors import MoeGgufError
from ..formats.text_files import read_message_file
from .answers import tolerate_any_text
from .chat_commands import Leave, Talk
from .chat_reader import messages
from .llama_words import LlamaCommand
from .loading import load_request, loading_options
from .models import MODEL, catalogue_path
from .sampling_options import build_sampling, n_predict_option, sampling_options, unescape
from .template_options import build_template, template_options
from .terminal import TERMINAL, say, verbosity
from .visible import visible

FILE = click.Path(exists=True, dir_okay=False)


@click.command(cls=LlamaCommand)
@click.argument("model", type=MODEL, required=False)
@click.option("-sys", "--system", "--system-prompt", "system", default=None, help="The system message.")
@click.option("-sysf", "--system-prompt-file", "system_file", type=FILE, help="Read the system message here.")
@click.option("-p", "--prompt", default=None, help="The first message.")
@click.option("-f", "--file", "prompt_file", type=FILE, help="Read the first message here.")
@click.option("-st", "--single-turn", is_flag=True, help="Answer one message, then leave.")
@n_predict_option("Maximum tokens of one answer; -1 is no limit.")
@click.option(
    "-r", "--reverse-prompt", "--stop", "stops", multiple=True, help="End an answer at this text; repeatable."
)
@click.option(
    "--exact",
    is_flag=True,
    help="Reuse of the cache only what does not change answers: the same seed then gives the same answer to the same "
    "conversation. Long answers are read again.",
)
@template_options
@sampling_options
@loading_options
@verbosity
def command(
    model: str | None,
    system: str | None,
    system_file: str | None,
    prompt: str | None,
    prompt_file: str | None,
    single_turn: bool,
    n_predict: int,
    stops: tuple[str, ...],
    exact: bool,
    **values: Any,
) -> None:
    """Talk to MODEL, a GGUF file or a name of the catalogue, through its chat template.

    With a pipe instead of a terminal each line is a message. /help lists the commands.
    """
    from ..jobs import chat as job

    first = given(prompt, prompt_file, "-p/--prompt", "-f/--file")
    request = job.Request(
        model=model,
        catalogue=catalogue_path(),
        load=load_request(values),
        sampling=build_sampling(values),
        template=build_template(values),
        n_predict=n_predict,
        stops=tuple(unescape(stop) for stop in stops),
        system=given(system, system_file, "-sys/--system", "-sysf/--system-prompt-file") or "",
        exact=exact,
    )
    prepared = job.prepare(request)
    tolerate_any_text()
    with job.opened_session(prepared, TERMINAL) as session:
        engine = session.engine
        name = engine.model.file.metadata.get("general.name") or prepared.path.stem
        say(f"{name}, {engine.n_threads} threads, context of {engine.n_ctx} tokens. /help shows the commands.")
        converse(Talk(session), first, single_turn)


def converse(talk: Talk, first: str | None, single_turn: bool) -> None:
    """Take lines until one of them leaves; `first` is a message, whatever it begins with."""
    if first is not None:
        attempt(talk.ask, first)
    for line in messages() if first is None or not single_turn else ():
        try:
            attempt(talk.take, line)
        except Leave:
            break
        if single_turn and talk.session.last:
            break


def attempt(act: Any, line: str) -> None:
    """Do what a line says; what fails is one line, and the conversation goes on."""
    try:
        act(line)
    except MoeGgufError as error:
        click.echo(visible(f"moe-gguf: {' '.join(str(error).split())}"), err=True)


def given(text: str | None, path: str | None, flag: str, file_flag: str) -> str | None:
    """Return a text that comes from a flag, or out of a file without its last line break."""
    if text is not None and path is not None:
        raise click.UsageError(f"give {flag} or {file_flag}, not both")
    if path is not None:
        return read_message_file(path).removesuffix("\n")
    return None if text is None else unescape(text)
