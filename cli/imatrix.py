"""`moe-gguf imatrix`: importance matrices as llama-imatrix makes them, and moments for calibrated rounding."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .loading import BUDGET_OPTIONS, MACHINE_OPTIONS, PLACING_OPTIONS, READING_OPTIONS, load_request, with_options
from .models import MODEL, catalogue_path
from .terminal import TERMINAL, echo, emit_json, format_bytes, verbosity

if TYPE_CHECKING:
    from ..jobs.imatrix import Report

FILE = click.Path(path_type=Path)
READ = click.Path(path_type=Path, exists=True, dir_okay=False)
WIDEST = 16


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.option("-f", "--file", "texts", multiple=True, type=READ, metavar="TEXT", help="Text to read; repeatable.")
@click.option("-o", "--output", type=FILE, metavar="FILE", default="imatrix.gguf", show_default=True, help="Output.")
@click.option("--output-format", type=click.Choice(["gguf", "dat"]), default="gguf", show_default=True, help="Format.")
@click.option("-c", "--ctx-size", type=click.IntRange(16), default=512, show_default=True, help="Tokens of a chunk.")
@click.option("--chunks", type=click.IntRange(1), metavar="N", help="Read N chunks  [default: all]")
@click.option("--in-file", "in_files", multiple=True, type=READ, help="Add this importance matrix; repeatable.")
@click.option("--coverage", type=click.IntRange(1), metavar="N", help="Go on until every expert has seen N tokens.")
@click.option(
    "--raise/--no-raise",
    "raise_experts",
    default=True,
    show_default=True,
    help="Use more experts per token where the text ends before --coverage.",
)
@click.option("--process-output", is_flag=True, help="Collect for output.weight too.")
@click.option("--parse-special", is_flag=True, help='Read "<|im_end|>" in texts as that token.')
@click.option("--moments", type=FILE, metavar="FILE", help="Write second moments for calibrated rounding too.")
@click.option("--moments-memory", metavar="SIZE", help="Memory for their sums  [default: half of what is free]")
@click.option("--show-statistics", is_flag=True, help="Print llama-imatrix's table of --in-file and leave.")
@click.option("--force", is_flag=True, help="Overwrite outputs.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@with_options(BUDGET_OPTIONS + READING_OPTIONS + PLACING_OPTIONS + MACHINE_OPTIONS)
@verbosity
def command(model: str | None, texts: tuple[Path, ...], in_files: tuple[Path, ...], **options: Any) -> None:
    """Measure which inputs of MODEL's weights are large, so that quantize keeps those weights more exactly.

    The file is llama-imatrix's, and quantize takes it by --imatrix. Without -f the text that ships is read; with
    --in-file and no -f, files are added up. MODEL may be quantized.
    """
    from ..formats.sizes import parse_size
    from ..jobs import imatrix as job

    if options["show_statistics"]:
        if len(in_files) != 1:
            raise click.UsageError("--show-statistics: name one file by --in-file")
        echo(job.statistics(in_files[0]))
        return
    memory = options["moments_memory"]
    request = job.Request(
        model=model,
        output=options["output"],
        texts=texts,
        catalogue=catalogue_path(),
        in_files=in_files,
        output_format=options["output_format"],
        n_ctx=options["ctx_size"],
        n_chunk=options["chunks"],
        process_output=options["process_output"],
        parse_special=options["parse_special"],
        coverage=options["coverage"],
        raise_experts=options["raise_experts"],
        moments=options["moments"],
        memory=parse_size(memory, "memory") if memory else None,
        force=options["force"],
        load=load_request({**options, "ctx_size": None}),
    )
    report = job.run(job.prepare(request), TERMINAL)
    emit_json(report.as_json()) if options["as_json"] else show(report)


def show(report: "Report") -> None:
    """Print what was written, and how many tokens each expert has seen."""
    n_token = report.n_chunk * report.n_ctx
    read = f"{n_token} tokens in {report.n_chunk} chunks of {report.n_ctx}, " if n_token else ""
    echo(f"{report.output}: {read}{report.n_entry} matrices, {report.seconds:.1f} s")
    if report.moments:
        moments = report.moments
        passes = f"{moments.n_pass} passes" if moments.n_pass != 1 else "one pass"
        echo(f"{moments.path}: moments of {moments.n_entry} inputs, {format_bytes(moments.n_bytes)}, {passes}")
    if not report.layers:
        return
    echo("tokens per expert (in brackets: of them above the model's own choice)")
    for each in report.layers:
        cells = [f"{n} ({more})" if more else str(n) for n, more in zip(each.tokens, each.apart, strict=True)]
        if len(cells) > WIDEST:
            cells = [f"{min(each.tokens)} to {max(each.tokens)} for {len(cells)} experts"]
            cells += [f"({sum(each.apart)})"] * bool(sum(each.apart))
        echo(f"  layer {each.layer:>3}  " + "  ".join(f"{cell:>6}" for cell in cells))
    echo(f"the least: {report.least}")
