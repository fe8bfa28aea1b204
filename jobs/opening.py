"""What a model argument stands for becomes an opened checkpoint: a folder, a hub model, or a recipe with its models.

A recipe is opened once: the doctor looks at it, its routers are zeros until `with_gates` has them, and nothing else
changes then.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.checkpoint import Checkpoint, open_checkpoint
from ..formats.errors import CheckpointError, OutputError, PlanError, RecipeError
from .listener import SILENT, Listener
from .sources import ModelSource, SourceKind

if TYPE_CHECKING:
    from ..merge.doctor import Finding
    from ..merge.open import Models
    from ..merge.recipe import Recipe


@dataclass(frozen=True)
class GateRequest:
    """Where a recipe's routers come from: `file` if it is there, else computed with the base as type `base` (BF16).

    What is computed is saved to `file`, if one is named. A file of another recipe is refused, and if `base` is named,
    one of another type.
    """

    file: Path | None = None
    base: str | None = None


DEFAULT_GATES = GateRequest()


@dataclass(frozen=True)
class Mixture:
    """An opened recipe that the doctor has seen, and where its routers will come from."""

    recipe: "Recipe"
    models: "Models"
    findings: "tuple[Finding, ...]"
    gates: GateRequest


@dataclass(frozen=True)
class Opened:
    """A source as a checkpoint; with a `mixture` its routers are zeros, enough for a plan, until `with_gates`."""

    checkpoint: Checkpoint
    mixture: Mixture | None = None

    def with_gates(self, listener: Listener = SILENT) -> Checkpoint:
        """Return the checkpoint with its routers, read or computed now; raises what computing them raises."""
        if self.mixture is None:
            return self.checkpoint
        from ..merge.open import with_gates
        from .gates import recipe_gates

        of = self.mixture
        return with_gates(self.checkpoint, recipe_gates(of.recipe, of.models, of.gates.file, of.gates.base, listener))


def open_source(source: ModelSource, gates: GateRequest = DEFAULT_GATES, listener: Listener = SILENT) -> Opened:
    """Open what a source stands for; its weights are not read yet. Raises MoeGgufError for what cannot be opened."""
    if source.kind is SourceKind.GGUF:
        raise CheckpointError(f"{source.path}: is GGUF already; to change its types: moe-gguf quantize {source.path}")
    if source.kind is SourceKind.RECIPE:
        return open_mixture(source, gates, listener=listener)
    if gates.file:
        raise PlanError("--gates goes with a recipe; for a finished GGUF use moe-gguf regate")
    if source.kind is SourceKind.CHECKPOINT and source.path:
        return Opened(open_checkpoint(source.path))
    return Opened(open_hub(source))


def open_hub(source: ModelSource) -> Checkpoint:
    """Fetch a hub model's files, or find them in the hub's cache, and open them."""
    from ..merge.hub import fetch

    if source.hub is None:
        raise RecipeError(f"{source.where}: {source.name} names no hub id")
    return replace(open_checkpoint(fetch(source.hub)), name=source.name)


def open_mixture(
    source: ModelSource,
    gates: GateRequest = DEFAULT_GATES,
    layout: str = "classic",
    refuse: Callable[[Checkpoint, "Recipe"], None] = lambda *_: None,
    listener: Listener = SILENT,
) -> Opened:
    """Open a recipe, let `refuse` look at what would be written, then the doctor. Raises RecipeError."""
    from ..merge.gates import zero_gates
    from ..merge.models import open_models
    from ..merge.open import open_recipe, sizes_of
    from .gates import check_freshness

    recipe = recipe_of(source)
    models = open_models(recipe)
    sizes = sizes_of(recipe, models)
    empty = zero_gates(recipe, sizes.n_layer, sizes.n_embd)
    merged = open_recipe(recipe, empty, layout=layout, models=models)
    merged = replace(merged, license=source.entry.license if source.entry else None)
    refuse(merged, recipe)
    check_freshness(recipe, models, gates.file, gates.base, listener)
    findings = examine_recipe(recipe, models, listener)
    return Opened(merged, Mixture(recipe, models, tuple(findings), gates))


def recipe_of(source: ModelSource) -> "Recipe":
    """Read the recipe that a model argument stands for. Raises RecipeError when it is none."""
    from ..merge.recipe import read_recipe, recipe_from_table

    if source.kind is not SourceKind.RECIPE:
        raise RecipeError(f"{source.where}: {source.name} is no merge recipe; give a .yml file of mergekit-moe")
    if source.path is not None:
        return replace(read_recipe(source.path), name=source.name)
    return recipe_from_table(source.name, source.recipe or {}, source.folder, source.where)


def check_gates(opened: Opened) -> None:
    """Refuse, before gates are computed, a file that they could not be saved to, and a llama.cpp that does not load.

    Raises OutputError and EngineError.
    """
    if opened.mixture is not None:
        check_gates_of(opened.mixture.recipe, opened.mixture.gates.file)


def check_gates_of(recipe: "Recipe", path: Path | None) -> None:
    """Refuse what `check_gates` refuses, of a recipe that is not open yet."""
    if path is not None and path.is_file():
        return
    if path is not None and not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent} for the gates; create it first")
    if recipe.gate_mode.startswith("hidden") or recipe.gate_mode == "calibrated":
        need_llama()


def need_llama() -> None:
    """Load llama.cpp, which will be needed, before anything is written. Raises EngineError."""
    from ..formats.llamacpp import llama

    llama()


def examine_recipe(recipe: "Recipe", models: "Models", listener: Listener = SILENT) -> "list[Finding]":
    """Let the merge doctor look at a recipe: warnings are told and returned, errors raise RecipeError."""
    from ..convert.vocabulary import tokenizer_differences
    from ..merge.doctor import examine

    @contextmanager
    def compared(n_bytes: int) -> Iterator[Callable[[int], object]]:
        """Show how far the comparison of experts is, when it takes more than two seconds."""
        with listener.bar(n_bytes, "compare experts that seem the same", delay=2) as bar:
            yield bar.update

    findings = examine(recipe, models, tokenizer_differences, compared)
    for finding in findings:
        if not finding.is_error:
            listener.warn(finding.text)
    if errors := [finding.text for finding in findings if finding.is_error]:
        raise RecipeError(f"{recipe.name}: {'; '.join(errors)}")
    return findings
