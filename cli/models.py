"""The model argument of the verbs, and the catalogue that it may be a name of."""

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from ..formats.errors import MoeGgufError
from ..jobs.sources import find_catalogue
from ..models.catalogue import read_catalogue

CATALOGUE = "moe_gguf.catalogue"


def catalogue_path() -> Path | None:
    """Return where the catalogue is: --catalogue, else what `find_catalogue` finds."""
    context = click.get_current_context(silent=True)
    return find_catalogue(context.meta.get(CATALOGUE) if context else None)


class ModelParameter(click.ParamType):
    """A model argument: any text, completed by the catalogue's names and by files."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the catalogue's names that begin so; the shell adds the files."""
        try:
            file = catalogue_path()
            models = read_catalogue(file).models.values() if file and file.is_file() else ()
        except MoeGgufError:
            models = ()
        names = [CompletionItem(one.name, help=one.title) for one in models if one.name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="file")]


MODEL = ModelParameter()
