"""The dense models of a recipe: references come in, opened checkpoints and adapters go out."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..formats.checkpoint import Checkpoint, open_checkpoint
from ..formats.errors import RecipeError
from .dense_config import check_dense_config
from .lora import Lora, open_lora
from .recipe import ModelReference, Recipe

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# Brings a hub repository's needed files here: (repository, revision or None) to a folder.
Fetch = Callable[[str, str | None], Path]


@dataclass(frozen=True)
class DenseModel:
    """A dense model of a recipe, opened; `repo` is its hub id, or its adapter's, where it came from a hub."""

    reference: ModelReference
    checkpoint: Checkpoint
    lora: Lora | None = None
    repo: str | None = None

    @property
    def label(self) -> str:
        """What the recipe calls it, without its adapter: names of folders may be the same, or a hub's hashes."""
        return self.reference.model

    @property
    def model_type(self) -> str:
        """The model type of its config.json ("llama")."""
        return str(self.checkpoint.config.get("model_type", "unknown"))


def open_models(recipe: Recipe, fetch: Fetch | None = None) -> dict[ModelReference, DenseModel]:
    """Open the base, every expert's model and every adapter of a recipe, each checkpoint once; reads no weight.

    What is no folder here is brought by `fetch` (by default from the hub). Raises RecipeError when a model is
    nowhere or an adapter does not fit, CheckpointError when a checkpoint is broken.
    """
    bring = fetch or _fetch_from_hub
    checkpoints: dict[Path, Checkpoint] = {}
    models: dict[ModelReference, DenseModel] = {}
    for reference in recipe.references:
        folder, repo = locate(reference.model, reference.revision, recipe, bring)
        key = folder.resolve()
        if key not in checkpoints:
            checkpoints[key] = open_checkpoint(folder)
            check_dense_config(checkpoints[key].config, folder / "config.json")
        lora = None
        if reference.lora:
            adapter, repo = locate(reference.lora, reference.lora_revision, recipe, bring)
            lora = open_lora(adapter, checkpoints[key].source)
        models[reference] = DenseModel(reference, checkpoints[key], lora, repo)
    return models


def locate(name: str, revision: str | None, recipe: Recipe, fetch: Fetch) -> tuple[Path, str | None]:
    """Return the folder of a model or adapter and its hub id: beside the recipe, here, or from the hub.

    Raises RecipeError when it is no folder and no hub id.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # ~somebody, who has no home here
        path = Path(name)
    for folder in (recipe.folder / path, path):
        if folder.is_dir():
            return folder, None
        if folder.suffix.lower() == ".gguf" and folder.is_file():
            raise RecipeError(
                f"{recipe.name}: {name} is a GGUF file, converted already; name the checkpoint folder or the hub "
                "repository of the model that it was made of"
            )
    if HUB_ID.fullmatch(name):
        return fetch(name, revision), name
    shown = name if name.isprintable() else repr(name)
    raise RecipeError(f"{recipe.name}: {shown}: no such folder, and not a hub id (owner/name)")


def _fetch_from_hub(repo: str, revision: str | None) -> Path:
    from .hub import fetch

    return fetch(repo, revision)
