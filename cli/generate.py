"""`moe-gguf generate`: completes a prompt, or answers it through the model's chat template."""

import sys
from typing import Any

import click

from ..formats.text_files import read_message_file, whole_text
from .answers import AnswerPrinter, speed_line, tolerate_any_text
from .llama_words import LlamaCommand
from .loading import load_request, loading_options
from .models import MODEL, catalogue_path
from .sampling_options import build_sampling, n_predict_option, sampling_options, unescape
from .template_options import build_template, template_options
from .terminal import TERMINAL, emit_json, say, verbosity, warn

FILE = click.Path(exists=True, dir_okay=False)


@click.command(cls=LlamaCommand)
@click.argument("model", type=MODEL, required=False)
@click.option("-p", "--prompt", default=None, help="The text to complete; standard input when it is left out.")
@click.option(
    "-f", "--file", "prompt_file", type=click.Path(exists=True, dir_okay=False), help="Read the prompt from this file."
)
@n_predict_option("Maximum tokens to generate; -1 continues until the model ends or the context is full.")
@click.option(
    "-cnv/-no-cnv",
    "--conversation/--no-conversation",
    "--chat/--no-chat",
    "conversation",
    default=None,
    help="Put the prompt into the model's chat template, as the user's message. Without it the text is "
    "completed as it is. --system implies it.",
)
@click.option("-sys", "--system", "--system-prompt", "system", default=None, help="The system message.")
@click.option("-sysf", "--system-prompt-file", "system_file", type=FILE, help="Read the system message here.")
@click.option("-r", "--reverse-prompt", "--stop", "stops", multiple=True, help="Stop before this text; repeatable.")
@click.option(
    "--escape/--no-escape",
    default=True,
    show_default=True,
    help="Read \\n, \\t, \\x41 and so on in -p, --system and -r.",
)
@click.option("--logprobs", type=click.IntRange(0, 100), help="With --json: log probabilities, and those of N others.")
@click.option("--json", "as_json", is_flag=True, help="Print text, tokens and speed as JSON when done.")
@template_options
@sampling_options
@loading_options
@verbosity
def command(
    model: str | None,
    prompt: str | None,
    prompt_file: str | None,
    n_predict: int,
    conversation: bool | None,
    system: str | None,
    system_file: str | None,
    stops: tuple[str, ...],
    escape: bool,
    logprobs: int | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Complete a prompt with MODEL, a GGUF file or a name of the catalogue.

    The answer is streamed to stdout, timings go to stderr. Ctrl-C ends it.
    """
    if system is not None and system_file is not None:
        raise click.UsageError("give --system or -sysf/--system-prompt-file, not both")
    if (system is not None or system_file is not None) and conversation is False:
        raise click.UsageError("--system needs the chat template; leave out -no-cnv")
    text = read_prompt(prompt, prompt_file, escape)
    if system_file is not None:
        system = read_message_file(system_file).removesuffix("\n")
    elif escape:
        system = unescape(system) if system else system
    if escape:
        stops = tuple(unescape(stop) for stop in stops)
    from ..jobs import generate as job

    request = job.Request(
        model=model,
        catalogue=catalogue_path(),
        prompt=text,
        sampling=build_sampling(values),
        template=build_template(values),
        load=load_request(values),
        n_predict=n_predict,
        stops=stops,
        chat=bool(conversation),
        system=system,
        n_logprobs=logprobs,
    )
    prepared = job.prepare(request)
    tolerate_any_text()
    with AnswerPrinter() as printer:
        report = job.run(prepared, TERMINAL, None if as_json else printer.show)
    if as_json and report.finish != "cancelled":
        emit_json(report.as_json())
    elif not as_json:
        say(speed_line(report.speed))
    if report.finish == "context":
        warn(f"the context of {report.n_ctx} tokens is full; use a larger -c/--ctx-size")
    if report.finish == "cancelled":
        raise KeyboardInterrupt


def read_prompt(prompt: str | None, prompt_file: str | None, escape: bool) -> str:
    """Return the prompt from -p, from a file without its last line break, or from stdin."""
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("give -p/--prompt or -f/--file, not both")
    if prompt is not None:
        return unescape(prompt) if escape else prompt
    if prompt_file is not None:
        return read_message_file(prompt_file).removesuffix("\n")
    if sys.stdin.isatty():
        raise click.UsageError("no prompt: give -p/--prompt, -f/--file, or pipe one in")
    return whole_text(sys.stdin, "standard input").removesuffix("\n")
