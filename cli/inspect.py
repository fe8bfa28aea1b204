"""`moe-gguf inspect`: what is in a GGUF file, a checkpoint or a catalogue model, from headers alone."""

import click

from .inspect_text import render, render_tensors
from .models import MODEL, catalogue_path
from .terminal import echo, emit_json, level, verbosity

DEFAULT_CTX = 4096


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option(
    "-c",
    "--ctx-size",
    default=DEFAULT_CTX,
    show_default=True,
    type=click.IntRange(0, 2**31 - 1),
    help="Context to plan memory for, in tokens; 0 is what the model was trained for.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
def command(model: str | None, tensors: bool, ctx_size: int, as_json: bool) -> None:
    """Show what is in MODEL: a GGUF file, a checkpoint folder, a merge recipe or a name of the catalogue.

    Parameters in all and per token, bytes by role and by type, tokenizer, chat template, and the memory that
    each quantization would need. Reads headers only. For a split GGUF, name the first shard.
    """
    from ..jobs import inspect as job

    report = job.run(job.Request(model, catalogue_path(), ctx_size)).as_json()
    if as_json:
        emit_json(report)
        return
    echo(render(report, every_type=level() > 0))
    if tensors:
        echo(render_tensors(report["tensors"]))
