"""`moe-gguf split`: a GGUF file as shards with llama.cpp's names."""

from pathlib import Path

import click

from .models import MODEL, catalogue_path
from .rewriting import OUTPUT, rewrite, rewriting_options
from .terminal import verbosity


@click.command()
@click.argument("model", type=MODEL)
@click.option("-o", "--output", required=True, type=OUTPUT, metavar="OUT", help="NAME.gguf for NAME-00001-of-N.gguf.")
@click.option("--split-max-size", metavar="N(M|G)", help="Write shards of at most this size, e.g. 45G.")
@click.option("--split-max-tensors", type=click.IntRange(1), help="Write shards of at most this many tensors.")
@rewriting_options
@verbosity
def command(
    model: str,
    output: Path,
    split_max_size: str | None,
    split_max_tensors: int | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Cut MODEL into shards, as llama-gguf-split does. No tensor is changed."""
    from ..formats.sizes import parse_size
    from ..jobs.rewrite import Request

    if (split_max_size is None) == (split_max_tensors is None):
        raise click.UsageError("give one of --split-max-size and --split-max-tensors")
    size = parse_size(split_max_size, "file") if split_max_size else None
    request = Request(
        model, output, catalogue_path(), split_max_size=size, split_max_tensors=split_max_tensors, force=force
    )
    rewrite(request, dry_run, as_json)
