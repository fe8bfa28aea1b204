"""What a release is made of: a model argument comes in, its files with their hashes and the recipe in words go out."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.errors import SNAPSHOT
from ..jobs.opening import open_hub, recipe_of
from ..jobs.sources import ModelSource, SourceKind, resolve_source
from .ledger import Ledger, digest
from .manifest import ExpertFacts, HashedFile, Source, SourceModel
from .request import Request

if TYPE_CHECKING:
    from ..merge.models import DenseModel
    from ..merge.recipe import Expert, ModelReference, Recipe

# Everything in a model's folder that has a say in the bytes of its GGUF: weights, configuration, tokenizer, card.
READ = re.compile(
    r".*\.safetensors(\.index\.json)?|pytorch_model.*\.bin(\.index\.json)?|adapter_model\.bin|.*config\.json|tokenizer.*"
    r"|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt|chat_template\..*|mergekit.*\.yml|README\.md"
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Found:
    """A resolved model argument: its files hashed, a digest of them all; with a recipe the models it names.

    `here` are the files, for those who look at what they are.
    """

    source: ModelSource
    facts: Source
    digest: str
    recipe: "Recipe | None" = None
    repos: "dict[ModelReference, str | None] | None" = None
    here: tuple[Path, ...] = ()

    @property
    def argument(self) -> str | Path | None:
        """What jobs are to be given as the model."""
        return self.source.path if self.source.entry is None else self.source.name


def find_source(request: Request, ledger: Ledger) -> Found:
    """Resolve the model, hash its files or find their hashes in the ledger. Raises MoeGgufError for what is none."""
    source = resolve_source(request.model, request.catalogue)
    if source.kind is SourceKind.RECIPE:
        return _of_recipe(source, ledger)
    if source.kind is SourceKind.GGUF and source.path:
        from ..formats.gguf_file import read_gguf

        paths = tuple(read_gguf(source.path).shards)
        model = SourceModel(source.name, _hashed(paths, ledger))
    else:
        folder = source.path or open_hub(source).folder
        paths = read_files(folder)
        model = SourceModel(source.name, _hashed(paths, ledger), source.hub, revision_of(folder))
    facts = Source(str(source.kind), source.name, (model,))
    return Found(source, facts, _digest(facts.models), here=paths)


def _of_recipe(source: ModelSource, ledger: Ledger) -> Found:
    from ..merge.models import open_models

    recipe = recipe_of(source)
    models = open_models(recipe)
    found: dict[Path, SourceModel] = {}
    here: list[Path] = []
    for reference, model in models.items():
        for name, folder in _folders(reference, model):
            if folder not in found:
                paths = read_files(folder)
                repo = model.repo if HUB_ID.fullmatch(name) and SNAPSHOT.search(str(folder)) else None
                found[folder] = SourceModel(shown(name), _hashed(paths, ledger), repo and name, revision_of(folder))
                here += paths
    texts = texts_of(recipe)
    every = [*found.values(), *([SourceModel("texts of the experts", _hashed(texts, ledger))] if texts else [])]
    facts = Source(str(source.kind), source.name, tuple(every))
    repos = {reference: model.repo for reference, model in models.items()}
    return Found(source, facts, digest([_digest(facts.models), recipe.source]), recipe, repos, tuple(here))


def texts_of(recipe: "Recipe") -> tuple[Path, ...]:
    """Return the files of texts that routers are fitted to, each once."""
    from ..merge.recipe import find_text

    names = dict.fromkeys(name for expert in recipe.experts for name in expert.positive_texts)
    return tuple(path for name in names if (path := find_text(recipe, name)))


def _folders(reference: "ModelReference", model: "DenseModel") -> Sequence[tuple[str, Path]]:
    adapter = [(str(reference.lora), model.lora.folder.resolve())] if model.lora else []
    return [(reference.model, model.checkpoint.folder.resolve()), *adapter]


def read_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a model's folder that a conversion reads, sorted by name."""
    return tuple(sorted(path for path in folder.iterdir() if path.is_file() and READ.fullmatch(path.name)))


def revision_of(folder: Path) -> str | None:
    """Return the commit of a folder in the hub's cache; None for any other folder."""
    match = SNAPSHOT.search(f"{folder}{os.sep}")
    return folder.name if match else None


def shown(name: str) -> str:
    """Return what others are told of a model: a hub id or relative path as it is, of an absolute one the last part."""
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] if Path(name).is_absolute() else name


def expert_facts(recipe: "Recipe", expert: "Expert", repos: "dict[ModelReference, str | None]") -> ExpertFacts:
    """Return an expert in words."""
    reference = expert.source_model
    return ExpertFacts(
        expert.name,
        "+".join(shown(part) for part in (reference.model, reference.lora) if part),
        repos.get(reference),
        expert.positive_prompts,
        expert.negative_prompts,
        tuple(map(shown, expert.positive_texts)),
    )


def local_names(recipe: "Recipe") -> list[str]:
    """Return what a recipe calls by absolute paths, which nobody else has."""
    names = [part for each in recipe.references for part in (each.model, each.lora) if part]
    return sorted({name for name in names if Path(name).is_absolute()})


def _hashed(paths: Sequence[Path], ledger: Ledger) -> tuple[HashedFile, ...]:
    return tuple(HashedFile(path.name, path.stat().st_size, ledger.sha256(path)) for path in paths)


def _digest(models: Sequence[SourceModel]) -> str:
    return digest([[file.name, file.sha256] for model in models for file in model.files])
