"""`moe-gguf cache`: what is kept between runs, listed or removed."""

from datetime import datetime

import click

from ..formats.words import count
from .tables import table
from .terminal import echo, emit_json, format_bytes, verbosity


@click.command()
@click.argument("action", type=click.Choice(["list", "clear"]))
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
def command(action: str, as_json: bool) -> None:
    """List what merging keeps between runs, or remove it.

    The cache holds GGUF files of the base models that gates were computed with. It keeps at most 20 GB, or what
    MOE_GGUF_CACHE_LIMIT says (0 keeps nothing), in the folder MOE_GGUF_CACHE; what was used longest ago goes first.
    Models of the hub are in the hub's own cache: see hf cache.
    """
    from ..jobs import cache as job

    report = job.list_cache() if action == "list" else job.clear_cache()
    if as_json:
        emit_json(report.as_json())
        return
    if report.entries and action == "list":
        rows = [
            (
                entry.name,
                format_bytes(entry.n_bytes),
                "now" if entry.in_use else f"{datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}",
            )
            for entry in report.entries
        ]
        echo(table(("file", "size", "last used"), rows, right={1}) + "\n")
    held = f"{format_bytes(report.n_bytes)} in {count(len(report.entries), 'file')}"
    limit = f", at most {format_bytes(report.limit)} are kept" if action == "list" else " removed"
    echo(f"{report.folder}: {held}{limit}")
