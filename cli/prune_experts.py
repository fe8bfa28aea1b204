"""`moe-gguf prune-experts`: a smaller file without the experts that matter least."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .compare import named_text
from .loading import BUDGET_OPTIONS, MACHINE_OPTIONS, PLACING_OPTIONS, READING_OPTIONS, load_request, with_options
from .models import MODEL, catalogue_path
from .output_text import print_output
from .tables import table
from .terminal import TERMINAL, echo, emit_json, say, verbosity

if TYPE_CHECKING:
    from ..jobs.prune import Report

READ = click.Path(path_type=Path, exists=True, dir_okay=False)
WIDEST = 16


@click.command()
@click.argument("model", type=MODEL)
@click.option("--keep", type=click.IntRange(1), required=True, metavar="N", help="Experts of each layer that stay.")
@click.option(
    "--by",
    type=click.Choice(["gate-norm", "frequency"]),
    default="gate-norm",
    show_default=True,
    help="What makes an expert matter: REAP's mean of router weight x norm of its output, or its tokens.",
)
@click.option("-f", "--file", "texts", multiple=True, type=READ, metavar="TEXT", help="Text to measure on; repeatable.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="OUT", help="Output.")
@click.option("--whole", is_flag=True, help="Drop the same experts in all layers.")
@click.option(
    "--compare", "compared", multiple=True, metavar="[NAME=]FILE", help="Compare with MODEL on this text; repeatable."
)
@click.option("-c", "--ctx-size", type=click.IntRange(16), default=512, show_default=True, help="Tokens of a chunk.")
@click.option("--chunks", type=click.IntRange(1), metavar="N", help="Read N chunks of the texts  [default: all]")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Load the result in llama.cpp.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@with_options(BUDGET_OPTIONS + READING_OPTIONS + PLACING_OPTIONS + MACHINE_OPTIONS)
@verbosity
def command(model: str, keep: int, texts: tuple[Path, ...], compared: tuple[str, ...], **options: Any) -> None:
    """Drop experts of MODEL, those that matter least on a text. The others keep their bytes.

    Without -f the text that ships is read. Give --compare a text that was not read for the choice.
    """
    from ..jobs import prune as job

    request = job.Request(
        model=model,
        output=options["output"],
        keep=keep,
        by=options["by"],
        texts=texts,
        compared=tuple(named_text(text) for text in compared),
        catalogue=catalogue_path(),
        whole=options["whole"],
        n_ctx=options["ctx_size"],
        n_chunk=options["chunks"],
        verify=options["verify"],
        force=options["force"],
        load=load_request({**options, "ctx_size": None}),
    )
    report = job.run(job.prepare(request), TERMINAL)
    emit_json(report.as_json()) if options["as_json"] else show(report, request.output)


def show(report: "Report", output: Path) -> None:
    """Print the file, who stays in each layer, and what it changes."""
    print_output(report.written.output, report.written.seconds)
    n_expert = report.scores.shape[1]
    if n_expert <= WIDEST:
        heads = ["layer", *map(str, range(n_expert))]
        rows = [
            [str(layer), *(f"{score:.3g}" if one in kept else f"({score:.3g})" for one, score in enumerate(scores))]
            for layer, kept, scores in zip(report.layers, report.kept, report.scores, strict=True)
        ]
        echo(table(heads, rows, right=range(n_expert + 1)))
        echo("scores by layer and expert; those in brackets are dropped")
    if report.comparison is None:
        say(f"what it costs: moe-gguf compare MODEL {output} -f TEXT, with a text that was not read here")
        return
    from .compare_text import lines

    echo("\n\n".join(lines(report.comparison)))
