"""`moe-gguf edit`: a GGUF file with other metadata; its weights are copied, never touched."""

from pathlib import Path

import click

from .models import MODEL, catalogue_path
from .rewriting import OUTPUT, rewrite, rewriting_options
from .terminal import verbosity


@click.command()
@click.argument("model", type=MODEL)
@click.option("-o", "--output", required=True, type=OUTPUT, metavar="OUT", help="The file to write.")
@click.option("--set", "settings", multiple=True, metavar="KEY=TYPE:VALUE", help="Set metadata; int, float, bool, str.")
@click.option("--remove", multiple=True, metavar="KEY", help="Leave a metadata entry out.")
@click.option("--chat-template", type=click.Path(exists=True, dir_okay=False), help="Take the chat template from here.")
@rewriting_options
@verbosity
def command(
    model: str,
    output: Path,
    settings: tuple[str, ...],
    remove: tuple[str, ...],
    chat_template: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a copy of MODEL with other metadata, e.g. --set general.license=str:apache-2.0."""
    from gguf.constants import Keys

    from ..formats.gguf_fields import field_of
    from ..formats.text_files import read_text_file
    from ..jobs.rewrite import Request
    from ..quantize.overrides import override_field, parse_kv_override

    overrides = [parse_kv_override(text) for text in settings]
    fields = [(one.key, override_field(one)) for one in overrides]
    if chat_template:
        fields.append((Keys.Tokenizer.CHAT_TEMPLATE, field_of(read_text_file(chat_template))))
    if not fields and not remove:
        raise click.UsageError("nothing to change: give --set, --remove or --chat-template")
    request = Request(model, output, catalogue_path(), tuple(fields), remove, force=force)
    rewrite(request, dry_run, as_json)
