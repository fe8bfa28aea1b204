"""`moe-gguf merge`: a recipe becomes a checkpoint folder that transformers reads, after the doctor has seen it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..formats.words import count
from .mergekit_options import mergekit_notes, mergekit_options
from .models import MODEL, catalogue_path
from .terminal import TERMINAL, echo, emit_json, say, verbosity
from .writing import gate_options, gate_request

if TYPE_CHECKING:
    from ..jobs.merge import Report


@click.command()
@click.argument("recipe", type=MODEL, required=False)
@click.argument("out", type=click.Path(), metavar="[DIR]", required=False)
@click.option("-o", "--output", type=click.Path(), metavar="DIR", help="Folder to write.")
@click.option("--layout", type=click.Choice(["classic", "fused"]), default="classic", show_default=True)
@click.option(
    "--max-shard-size",
    "--out-shard-size",
    "max_shard_size",
    metavar="N(M|G)",
    default="5G",
    show_default=True,
    help="Write shards of at most this size.",
)
@click.option("--check", is_flag=True, help="Only check the recipe for problems; write nothing.")
@click.option("-f", "--force", is_flag=True, help="Replace an existing checkpoint.")
@gate_options
@mergekit_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
def command(recipe: str | None, out: str | None, **options: Any) -> None:
    """Merge dense models into a mixture of experts, as mergekit-moe does.

    RECIPE is a mergekit-moe YAML file or a model of the catalogue (models.toml). To get a GGUF, give the recipe to
    convert or quantize instead: they read it as if it were merged, and need no room for the merge. DIR is the same as
    -o DIR, and mergekit-moe's options are understood.
    """
    from ..formats.sizes import parse_size
    from ..jobs import merge as job

    output, check = options["output"], options["check"]
    if out is not None and output is not None:
        raise click.UsageError(f"name one folder to write: {out} or {output}")
    output = out if output is None else output
    if output == "" or (output is None and not check):
        raise click.UsageError("name the folder to write with -o DIR, or use --check")
    request = job.Request(
        recipe=recipe,
        output=None if check or output is None else Path(output),
        catalogue=catalogue_path(),
        layout=options["layout"],
        max_shard=parse_size(options["max_shard_size"], "file"),
        force=options["force"],
        gates=gate_request(options),
    )
    for note in mergekit_notes():
        say(note)
    prepared = job.prepare(request, TERMINAL)
    if check and options["as_json"]:
        emit_json(prepared.as_json())
    elif check:
        found = count(len(prepared.findings), "warning") if prepared.findings else "no warnings"
        say(f"{prepared.name}: {found}")
    else:
        show(job.run(prepared, TERMINAL), options["as_json"])


def show(report: "Report", as_json: bool) -> None:
    """Print what was written."""
    if as_json:
        emit_json(report.as_json())
        return
    tensors = count(report.n_tensors, "tensor")
    echo(f"{report.output}: {tensors}, {report.n_bytes:,} bytes ({report.layout} layout)")
