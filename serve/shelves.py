"""Which models can be served: those of a folder, and those of the catalogue that have a GGUF file."""

import re
from pathlib import Path

from ..formats.errors import CatalogueError, MoeGgufError
from ..formats.gguf_file import read_gguf
from ..jobs.sources import gguf_of
from ..models.catalogue import read_catalogue
from ..models.gguf_kind import demand_model
from .models import Shelf

LATER_SHARD = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


def shelf_of(folder: Path | None, catalogue: Path | None, most: int, idle_seconds: float) -> Shelf:
    """Return what may be loaded; the catalogue's default is meant where no model is named, else the folder's first.

    Raises CatalogueError when there is nothing.
    """
    found: dict[str, Path] = {}
    default: str | None = None
    if folder is not None:
        found = {path.stem: path for path in sorted(folder.rglob("*.gguf")) if is_model(path)}
    elif catalogue is not None:
        known = read_catalogue(catalogue)
        found = {name: path for name, entry in known.models.items() if (path := gguf_of(entry))}
        default = known.model(None).name
    if not found:
        where = folder or catalogue or "here"
        raise CatalogueError(f"{where}: no GGUF file to serve; name a MODEL, or a folder with --models-dir")
    return Shelf(found, default if default in found else next(iter(found)), most, idle_seconds)


def is_model(path: Path) -> bool:
    """Tell whether a GGUF file is a model to answer with, and not a later shard of one."""
    if LATER_SHARD.search(path.name):
        return False
    try:
        demand_model(read_gguf(path))
    except (MoeGgufError, OSError):
        return False
    return True
