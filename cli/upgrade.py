"""`moe-gguf upgrade`: an old GGUF file as llama.cpp loads it today, with the same weights."""

from pathlib import Path

import click

from .models import MODEL, catalogue_path
from .rewriting import OUTPUT, rewrite, rewriting_options
from .terminal import verbosity


@click.command()
@click.argument("model", type=MODEL)
@click.option("-o", "--output", required=True, type=OUTPUT, metavar="OUT", help="The file to write.")
@click.option(
    "--from",
    "repair_from",
    type=click.Path(exists=True, path_type=Path),
    metavar="SOURCE",
    help="Take what the tokenizer's metadata lacks (pre-tokenizer, chat template) from this GGUF or checkpoint.",
)
@click.option(
    "--allow-requantize",
    is_flag=True,
    help="Stack experts of several types in the largest of these; some are quantized again.",
)
@click.option("--verify/--no-verify", default=True, show_default=True, help="Load the result in llama.cpp.")
@rewriting_options
@verbosity
def command(
    model: str,
    output: Path,
    repair_from: Path | None,
    allow_requantize: bool,
    verify: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Bring MODEL up to date: experts of before April 2024 are stacked, GGUF 1 and 2 become 3.

    No weight is changed, but for experts of several types in one layer, with --allow-requantize.
    """
    from ..jobs.rewrite import Request

    request = Request(
        model,
        output,
        catalogue_path(),
        repair_from=repair_from,
        requantize=allow_requantize,
        verify=verify,
        force=force,
    )
    rewrite(request, dry_run, as_json)
