"""`moe-gguf convert`: a checkpoint or a recipe becomes one GGUF file, verified before it gets its name."""

from typing import Any

import click

from .models import MODEL, catalogue_path
from .output_text import print_output, print_tensors
from .terminal import TERMINAL, emit_json, verbosity
from .writing import force_option, gate_request, writing_options

OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0")


@click.command()
@click.argument("source", type=MODEL, required=False)
@click.option(
    "-o",
    "--outfile",
    type=str,
    metavar="FILE",
    help="Output file (.gguf) or folder; by default NAME-SIZE-TYPE.gguf in this folder.",
)
@click.option(
    "--outtype",
    type=click.Choice(OUTTYPES, case_sensitive=False),
    default="auto",
    show_default=True,
    help="Type of the matrices; auto is the checkpoint's own 16-bit type.",
)
@click.option("--no-verify", is_flag=True, help="Do not load the finished file in llama.cpp.")
@writing_options
@force_option("-f", "--force")
@verbosity
def command(source: str | None, **options: Any) -> None:
    """Write SOURCE as GGUF.

    SOURCE is a checkpoint folder as transformers or mergekit-moe writes it, a merge recipe (.yml), or a name
    of the catalogue (models.toml); without it, the catalogue's default.
    """
    from ..formats.sizes import parse_size
    from ..jobs import convert as job

    split = options["split_max_size"]
    request = job.Request(
        source=source,
        catalogue=catalogue_path(),
        outfile=options["outfile"],
        outtype=options["outtype"].lower(),
        split_max_size=parse_size(split, "file") if split else None,
        pre_tokenizer=options["pre_tokenizer"],
        gates=gate_request(options),
        verify=not options["no_verify"],
        allow_nonfinite=options["allow_nonfinite"],
        force=options["force"],
        n_threads=options["threads"],
    )
    prepared = job.prepare(request, TERMINAL)
    report = prepared.report() if options["dry_run"] else job.run(prepared, TERMINAL)
    if options["as_json"]:
        emit_json(report.as_json())
        return
    for output in report.outputs:
        print_output(output, report.seconds)
        if options["dry_run"]:
            print_tensors(output.output.entries)
