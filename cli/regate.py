"""`moe-gguf regate`: the routers of a GGUF are swapped for others; nothing else in the file changes."""

from pathlib import Path

import click

from .models import MODEL, catalogue_path
from .terminal import TERMINAL, echo, emit_json, verbosity


@click.command()
@click.argument("model", type=MODEL)
@click.argument("gates", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT", help="File to write.")
@click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
def command(model: str, gates: Path, output: Path, force: bool, as_json: bool) -> None:
    """Write a copy of MODEL with the routers of GATES.

    GATES comes from calibrate, or from merge --gates. Only the routers' bytes change, a few hundred kB.
    """
    from ..jobs import regate as job

    report = job.run(job.prepare(job.Request(model, gates, output, catalogue_path(), force)), TERMINAL)
    if as_json:
        emit_json(report.as_json())
    else:
        echo(f"{report.outputs[0]}: {report.n_routers} routers of {report.n_expert} experts swapped")
