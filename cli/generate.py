"""`moe-gguf generate`: completes a prompt, or answers it through the model's chat template."""

import sys
from typing import TYPE_CHECKING, Any

import click

from .answers import opened_engine, speed_line, speed_report, stream_answer, tolerate_any_text
from .loading import loading_options
from .models import MODEL, resolve_gguf
from .sampling_options import build_sampling, sampling_options, unescape
from .template_options import build_template, template_options
from .terminal import emit_json, say, verbosity, warn
from .text_files import plain_text, read_text_file

if TYPE_CHECKING:
    from ..runner.engine import Engine
    from ..runner.sampling import SamplingOptions
    from ..runner.templates.chat_format import TemplateOptions


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.option("-p", "--prompt", default=None, help="The text to complete; standard input when it is left out.")
@click.option("-f", "--file", "prompt_file", type=click.Path(exists=True, dir_okay=False), help="Read the prompt here.")
@click.option(
    "-n",
    "--n-predict",
    "--predict",
    "n_predict",
    type=click.IntRange(min=-1),
    default=-1,
    show_default=True,
    help="Most tokens to generate; -1 goes on until the model ends or the context is full.",
)
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
@click.option("-r", "--reverse-prompt", "--stop", "stops", multiple=True, help="Stop before this text; repeatable.")
@click.option(
    "--escape/--no-escape",
    default=True,
    show_default=True,
    help="Read \\n, \\t, \\x41 and so on in -p, --system and -r.",
)
@click.option("--logprobs", type=click.IntRange(0, 100), help="With --json: log probabilities, and of so many others.")
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
    stops: tuple[str, ...],
    escape: bool,
    logprobs: int | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Complete a prompt with MODEL, a GGUF file or a name of the catalogue.

    The answer goes to stdout as it comes, what it took to stderr. Ctrl-C ends it.
    """
    if system is not None and conversation is False:
        raise click.UsageError("--system needs the chat template; leave out -no-cnv")
    text = read_prompt(prompt, prompt_file, escape)
    if escape:
        system = unescape(system) if system else system
        stops = tuple(unescape(stop) for stop in stops)
    sampling, template = build_sampling(values), build_template(values)
    path = resolve_gguf(model)
    with opened_engine(path, values) as engine:
        tokens, settings = prompt_of(engine, text, system, template if conversation or system is not None else None)
        settings |= stop_settings(engine, stops) | {"n_predict": n_predict}
        if as_json:
            emit_json(report(engine, tokens, sampling, settings | {"n_logprobs": logprobs}))
        else:
            show(engine, tokens, sampling, settings)


def read_prompt(prompt: str | None, prompt_file: str | None, escape: bool) -> str:
    """Return the prompt from -p, from a file without its last line break, or from stdin."""
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("give -p/--prompt or -f/--file, not both")
    if prompt is not None:
        return unescape(prompt) if escape else prompt
    if prompt_file is not None:
        return read_text_file(prompt_file).removesuffix("\n")
    if sys.stdin.isatty():
        raise click.UsageError("no prompt: give -p/--prompt, -f/--file, or pipe one in")
    return plain_text(sys.stdin.read()).removesuffix("\n")


def prompt_of(
    engine: "Engine", text: str, system: str | None, template: "TemplateOptions | None"
) -> tuple[list[int], dict[str, Any]]:
    """Return the prompt's tokens, raw or through the chat template, and how an answer to it ends."""
    from ..runner.templates.chat_format import chat_format, continued
    from ..runner.templates.message import Message

    if template is None:
        return continued(engine.model, text), {}
    chat = chat_format(engine.model, template)
    if not chat.template.chosen:
        warn("the model has no chat template; ChatML is used")
    messages = [Message("system", system)] if system else []
    rendered = chat.render([*messages, Message("user", text)])
    for remark in (*rendered.notes, *rendered.lost):
        warn(remark)
    if chat.endings.note:
        say(chat.endings.note)
    return chat.tokens(rendered), {"endings": chat.endings}


def stop_settings(engine: "Engine", stops: tuple[str, ...]) -> dict[str, Any]:
    """Return what ends the answer as the user wants."""
    from ..runner.templates.endings import stops_of

    found = stops_of(engine.model, stops)
    return {"stops": found.texts, "stop_tokens": found.tokens}


def show(engine: "Engine", tokens: list[int], sampling: "SamplingOptions", settings: dict[str, Any]) -> None:
    """Stream the answer to stdout. Raises KeyboardInterrupt after Ctrl-C, when the text so far is printed."""
    from ..runner.generation import begin, pieces_of, speed
    from ..runner.interrupt import on_interrupt

    tolerate_any_text()
    generation = begin(engine, tokens, sampling, **settings)
    with on_interrupt(engine.cancel):
        finish = stream_answer(pieces_of(engine, generation))
    say(speed_line(speed(generation)))
    if finish == "context":
        warn(f"the context of {engine.n_ctx} tokens is full; use a larger -c/--ctx-size")
    if finish == "cancelled":
        raise KeyboardInterrupt


def report(
    engine: "Engine", tokens: list[int], sampling: "SamplingOptions", settings: dict[str, Any]
) -> dict[str, Any]:
    """Generate and return what `--json` prints; docs/generate.md describes it."""
    from ..runner.engine import Cancelled
    from ..runner.generation import begin, pieces_of, speed
    from ..runner.interrupt import on_interrupt

    generation = begin(engine, tokens, sampling, **settings)
    try:
        with on_interrupt(engine.cancel):
            pieces = list(pieces_of(engine, generation))
    except Cancelled:
        raise KeyboardInterrupt from None
    result: dict[str, Any] = {
        "model": str(engine.model.path),
        "text": "".join(piece.text for piece in pieces),
        "finish": generation.finish,
        "seed": generation.sampler.seed,
        "prompt_tokens": tokens,
        "tokens": generation.tokens,
        "speed": speed_report(speed(generation)),
    }
    if settings["n_logprobs"] is not None:
        result["logprobs"] = [
            {
                "token": piece.logprob.token,
                "logprob": piece.logprob.logprob,
                "top": [{"token": token, "logprob": value} for token, value in piece.logprob.top],
            }
            for piece in pieces
            if piece.logprob
        ]
    return result
