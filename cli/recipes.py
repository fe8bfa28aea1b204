"""Merge recipes and hub models as sources: what a model argument stands for becomes an opened checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.checkpoint import Checkpoint, open_checkpoint
from ..formats.errors import OutputError, RecipeError
from .models import ModelSource, SourceKind
from .terminal import progress, warn
from .writing import early_check

if TYPE_CHECKING:
    from ..merge.doctor import Finding
    from ..merge.open import Models
    from ..merge.recipe import Recipe
    from .plans import Routers


def recipe_of(source: ModelSource) -> "Recipe":
    """Read the recipe that a model argument stands for. Raises RecipeError when it is none."""
    from ..merge.recipe import read_recipe, recipe_from_table

    if source.kind is not SourceKind.RECIPE:
        raise RecipeError(f"{source.where}: {source.name} is no merge recipe; give a .yml file of mergekit-moe")
    if source.path is not None:
        return replace(read_recipe(source.path), name=source.name)
    return recipe_from_table(source.name, source.recipe or {}, source.folder, source.where)


def open_recipe_source(source: ModelSource, routers: "Routers") -> Checkpoint:
    """Open a recipe as the checkpoint it stands for, after the doctor has seen it; gates are read or computed."""
    from ..merge.gates import zero_gates
    from ..merge.models import open_models
    from ..merge.open import open_recipe, sizes_of
    from .gates import recipe_gates

    recipe = recipe_of(source)
    models = open_models(recipe)
    if not routers.zeros:
        check_gates(recipe, routers.file)
    examine_recipe(recipe, models)
    if routers.zeros:
        sizes = sizes_of(recipe, models)
        gates = zero_gates(recipe, sizes.n_layer, sizes.n_embd)
    else:
        gates = recipe_gates(recipe, models, routers.file, routers.base)
    merged = open_recipe(recipe, gates, models=models)
    return replace(merged, license=source.entry.license if source.entry else None)


def check_gates(recipe: "Recipe", path: Path | None) -> None:
    """Refuse, before gates are computed, a --gates file that could not be saved, and a llama.cpp that does not load.

    Raises OutputError and EngineError.
    """
    if path is not None and path.is_file():
        return
    if path is not None and not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent} for the gates; create it first")
    if recipe.gate_mode.startswith("hidden") or recipe.gate_mode == "calibrated":
        early_check()


def open_hub(source: ModelSource) -> Checkpoint:
    """Fetch a hub model's files, or find them in the hub's cache, and open them."""
    from ..merge.hub import fetch

    if source.hub is None:
        raise RecipeError(f"{source.where}: {source.name} names no hub id")
    return replace(open_checkpoint(fetch(source.hub)), name=source.name)


def examine_recipe(recipe: "Recipe", models: "Models") -> "list[Finding]":
    """Let the merge doctor look at a recipe: warnings are printed and returned, errors raise RecipeError."""
    from ..convert.vocabulary import tokenizer_differences
    from ..merge.doctor import examine

    findings = examine(recipe, models, tokenizer_differences, compared)
    for finding in findings:
        if not finding.is_error:
            warn(finding.text)
    if errors := [finding.text for finding in findings if finding.is_error]:
        raise RecipeError(f"{recipe.name}: {'; '.join(errors)}")
    return findings


@contextmanager
def compared(n_bytes: int) -> Iterator[Callable[[int], object]]:
    """Show how far the comparison of experts is, when it takes more than two seconds."""
    with progress(n_bytes, "compare experts that seem the same", delay=2) as bar:
        yield bar.update
