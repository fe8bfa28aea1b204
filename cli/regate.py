"""`moe-gguf regate`: the routers of a GGUF are swapped for others; nothing else in the file changes."""

from pathlib import Path

import click

from .models import MODEL
from .terminal import verbosity


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
    from ..formats.errors import OutputError
    from ..formats.gguf_file import read_gguf, same_file
    from ..merge.gates import load_gates
    from ..merge.regate import regate
    from ..writer.journal import journal_path
    from ..writer.partial import may_be_replaced
    from .models import resolve_gguf
    from .terminal import emit_json, progress

    if same_file(gates, output):
        raise OutputError(f"{output}: the output is the file of the routers; choose another name")
    if output.is_file() and not may_be_replaced(output):
        raise OutputError(f"{output}: exists and is no GGUF file; choose another name")
    if journal_path(output).exists():
        raise OutputError(
            f"{output}: an unfinished convert or quantize run writes here; finish it, or choose another name"
        )
    file = read_gguf(resolve_gguf(model))
    routers = load_gates(gates)
    with progress(sum(shard.stat().st_size for shard in file.shards), "regate") as bar:
        written = regate(file, routers, output, force, bar.update)
    if as_json:
        emit_json({"outputs": [str(path) for path in written], "routers": len(routers.routers)})
    else:
        click.echo(f"{written[0]}: {len(routers.routers)} routers of {len(routers.routers[0])} experts swapped")
