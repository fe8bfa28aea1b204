"""`moe-gguf compare`: what quantizations change, against a base: llama-perplexity's numbers, and where tokens go."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .loading import BUDGET_OPTIONS, MACHINE_OPTIONS, PLACING_OPTIONS, READING_OPTIONS, load_request, with_options
from .models import MODEL, catalogue_path
from .terminal import TERMINAL, echo, emit_json, verbosity

if TYPE_CHECKING:
    from ..jobs.compare_report import Report

NEW = click.Path(dir_okay=False, path_type=Path)
THERE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("base", type=MODEL)
@click.argument("variants", type=MODEL, nargs=-1, required=True)
@click.option("-f", "--file", "texts", multiple=True, required=True, metavar="[NAME=]FILE", help="A text; repeatable.")
@click.option("-c", "--ctx-size", type=click.IntRange(8), default=512, show_default=True, help="Tokens of a window.")
@click.option("--chunks", type=click.IntRange(1), help="Read only the first N windows of each text.")
@click.option("--base-logits", type=THERE, help="Take the base's logits from this file instead of reading it.")
@click.option("--save-logits", type=NEW, help="Save the base's logits here, as llama-perplexity does.")
@click.option("--compact", is_flag=True, help="Save them in half of the size, for this program only.")
@click.option("--prompts", type=THERE, help="Answer the prompts of this file, one a line, by all models.")
@click.option(
    "--plot", "plots", type=NEW, multiple=True, help="Draw size against divergence: .png or .svg; repeatable."
)
@click.option("-n", "--n-predict", type=click.IntRange(1), default=64, show_default=True, help="Tokens of an answer.")
@with_options(READING_OPTIONS + BUDGET_OPTIONS + PLACING_OPTIONS + MACHINE_OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
def command(base: str, variants: tuple[str, ...], texts: tuple[str, ...], as_json: bool, **values: Any) -> None:
    """Measure what VARIANTS change against BASE: perplexity, KL divergence, routing, speed.

    The base is read once, then each variant. The numbers are those of llama-perplexity --kl-divergence.
    """
    from ..formats.text_files import read_text_file
    from ..jobs import compare as job

    prompts = values.pop("prompts")
    request = job.Request(
        base=base,
        variants=variants,
        texts=tuple(named_text(text) for text in texts),
        catalogue=catalogue_path(),
        n_ctx=values.pop("ctx_size"),
        n_chunk=values.pop("chunks"),
        base_logits=values.pop("base_logits"),
        save_logits=values.pop("save_logits"),
        compact=values.pop("compact"),
        prompts=tuple(line for line in read_text_file(prompts).splitlines() if line.strip()) if prompts else (),
        n_predict=values.pop("n_predict"),
        plots=values.pop("plots"),
        load=load_request(values),
    )
    report = job.run(job.prepare(request), TERMINAL)
    emit_json(report.as_json()) if as_json else show(report)


def named_text(argument: str) -> tuple[str, Path]:
    """Return the name and the file of [NAME=]FILE; a file is its own name."""
    name, equals, path = argument.partition("=")
    found = (name, Path(path)) if equals and not Path(argument).is_file() else (Path(argument).name, Path(argument))
    if not found[1].is_file():
        raise click.BadParameter(f"{found[1]}: no such file", param_hint="-f")
    return found


def show(report: "Report") -> None:
    """Print the report."""
    from .compare_text import lines

    echo("\n\n".join(lines(report)))
