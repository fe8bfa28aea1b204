"""`moe-gguf join`: the shards of a GGUF file as one file."""

from pathlib import Path

import click

from .models import MODEL, catalogue_path
from .rewriting import OUTPUT, rewrite, rewriting_options
from .terminal import verbosity


@click.command()
@click.argument("model", type=MODEL)
@click.option("-o", "--output", required=True, type=OUTPUT, metavar="OUT", help="The file to write.")
@rewriting_options
@verbosity
def command(model: str, output: Path, force: bool, dry_run: bool, as_json: bool) -> None:
    """Join the shards of MODEL, which is the first of them (NAME-00001-of-N.gguf), into one file."""
    from ..jobs.rewrite import Request

    rewrite(Request(model, output, catalogue_path(), force=force), dry_run, as_json)
