"""What a model argument means: a path or a catalogue name becomes a `ModelSource` or a GGUF path.

A path wins over a name; no argument means the catalogue's default. `catalogue` is the models.toml to look in, or None.
"""

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ..formats.errors import CatalogueError, CheckpointError, GgufError, MoeGgufError
from ..formats.file_kinds import NO_GGUF, part_of, what_it_is
from ..models.catalogue import Catalogue, CatalogueModel, nearest_first, read_catalogue
from .gguf_choice import best_gguf, others_in

CATALOGUE_FILE = "models.toml"
CATALOGUE_VARIABLE = "MOE_GGUF_CATALOGUE"
RECIPE_SUFFIXES = (".yml", ".yaml")

# Which of a model's files other types may be made from: nothing was lost in these.
TO_QUANTIZE = ("F32", "BF16", "F16")


class SourceKind(StrEnum):
    """What a model's weights come from."""

    CHECKPOINT = "checkpoint"
    RECIPE = "recipe"
    GGUF = "gguf"
    HUB = "hub"


@dataclass(frozen=True)
class ModelSource:
    """Where a model's weights come from, and what the catalogue says about it.

    `path` is the checkpoint folder, the recipe file or the GGUF file; None for a recipe in the catalogue
    (then `recipe` is its table) and for a hub id (then `hub` is it). Relative paths in a recipe start at
    `folder`; `where` is the place of the recipe or the catalogue's entry, for messages. `entry` is None for
    what the user gave as a path.
    """

    kind: SourceKind
    name: str
    folder: Path
    where: str
    path: Path | None = None
    recipe: dict[str, Any] | None = None
    hub: str | None = None
    entry: CatalogueModel | None = None

    @property
    def output(self) -> Path | None:
        """The catalogue's folder for this model's GGUF files; None for what was given as a path."""
        return self.entry.output if self.entry else None


def find_catalogue(chosen: str | None = None) -> Path | None:
    """Return where the catalogue is: `chosen`, else MOE_GGUF_CATALOGUE, else ./models.toml, else None.

    Whether a chosen one is there is only asked when a name has to be looked up.
    """
    chosen = chosen or os.environ.get(CATALOGUE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(CATALOGUE_FILE) if Path(CATALOGUE_FILE).is_file() else None


def catalogue_model(name: str | None, catalogue: Path | None) -> CatalogueModel:
    """Return a model of the catalogue, or its default for None.

    Raises CatalogueError: there is no catalogue, it is broken, or does not know the name.
    """
    if catalogue is None and name is None:
        raise CatalogueError(
            f"no model given and no {CATALOGUE_FILE} here; name a path, or a catalogue with --catalogue"
        )
    if catalogue is None:
        raise CatalogueError(f"{name}: no such file or folder, and no {CATALOGUE_FILE} here that could name it")
    if not catalogue.is_file():
        raise CatalogueError(f"{catalogue}: no such catalogue; check --catalogue or {CATALOGUE_VARIABLE}")
    known = read_catalogue(catalogue)
    if name is not None and name not in known.models:
        raise _neither(name, known)
    return known.model(name)


def _neither(name: str, catalogue: Catalogue) -> CatalogueError:
    known = nearest_first(name, catalogue.models)
    return CatalogueError(f"{name}: no such file or folder, and no model of {catalogue.file}; known: {known}")


def resolve_source(argument: str | Path | None, catalogue: Path | None, prefer_gguf: bool = False) -> ModelSource:
    """Tell what a model argument stands for: a checkpoint folder, a recipe, a GGUF file, or a catalogue name.

    With `prefer_gguf` a catalogue model that has been converted at full precision is that GGUF file, unless the
    catalogue or the source has changed since. Raises CatalogueError for what is neither path nor name,
    MoeGgufError for a path that is nothing we read.
    """
    if argument is not None and os.path.exists(argument):
        path = Path(argument)
        return ModelSource(kind_of_path(path), path.stem, path.parent, str(path), path=path)
    entry = catalogue_model(_name(argument), catalogue)
    converted = best_gguf(entry.output, TO_QUANTIZE) if prefer_gguf else None
    if converted and converted.stat().st_mtime >= last_change(entry):
        return ModelSource(SourceKind.GGUF, entry.name, entry.folder, entry.where, path=converted, entry=entry)
    if entry.path:
        if not entry.path.exists():
            raise CatalogueError(f"{entry.where}: {entry.name}: {entry.path} does not exist")
        kind = kind_of_path(entry.path)
        return ModelSource(kind, entry.name, entry.path.parent, entry.where, path=entry.path, entry=entry)
    kind = SourceKind.HUB if entry.hub else SourceKind.RECIPE
    return ModelSource(kind, entry.name, entry.folder, entry.where, recipe=entry.recipe, hub=entry.hub, entry=entry)


def _name(argument: str | Path | None) -> str | None:
    return None if argument is None else str(argument)


def last_change(entry: CatalogueModel) -> float:
    """Return when the catalogue, or the file that describes a model's source, was last changed."""
    described_by = [entry.catalogue]
    if entry.path:
        described_by += [entry.path, entry.path / "config.json"]
    return max(path.stat().st_mtime for path in described_by if path.is_file())


def kind_of_path(path: Path) -> SourceKind:
    """Tell a checkpoint folder, a recipe and a GGUF file apart. Raises MoeGgufError for anything else."""
    if path.is_dir():
        if (path / "config.json").is_file():
            return SourceKind.CHECKPOINT
        raise CheckpointError(f"{path}: {what_lacks(path)}")
    if not path.is_file():
        raise GgufError(f"{path}: neither a file nor a folder, so it is no model")
    with open(path, "rb") as file:
        magic = file.read(4)
    if part := part_of(path):
        raise GgufError(f"{path}: {part}")
    if magic == b"GGUF" or path.suffix.lower() == ".gguf":
        return SourceKind.GGUF
    if path.suffix.lower() in RECIPE_SUFFIXES:
        return SourceKind.RECIPE
    what = what_it_is(path)
    if what == NO_GGUF:
        what = "not a model; give a checkpoint folder, a .gguf file, a recipe (.yml), or a catalogue name"
    raise GgufError(f"{path}: {what}")


def what_lacks(folder: Path) -> str | None:
    """Return what a folder lacks to be a checkpoint, and what to do; None when it looks like one."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            return "no config.json, only a LoRA adapter's; name it in a recipe, as an expert's model+adapter"
        if ggufs := sorted(path.name for path in folder.glob("*.gguf")):
            return f"no config.json in this folder, but {ggufs[0]}; name the file"
        return "no config.json in this folder; give a checkpoint folder, or a .gguf file"
    if not any(found for pattern in ("*.safetensors", "pytorch_model*.bin") for found in folder.glob(pattern)):
        return "no weights (*.safetensors) beside its config.json; download or copy them"
    return None


def resolve_gguf(argument: str | Path | None, catalogue: Path | None) -> Path:
    """Return the GGUF file that a model argument stands for; of a catalogue model the best one to run.

    Raises CatalogueError for what is neither path nor name, and when the model has no GGUF file yet.
    """
    if argument is not None and os.path.exists(argument):
        path = Path(argument)
        if path.is_dir():
            found = best_gguf(path)
            if found:
                return found
            if others := others_in(path):
                raise GgufError(f"{path}: no model in this folder: {others}")
            if lacks := what_lacks(path):
                raise GgufError(f"{path}: no GGUF file in this folder, and {lacks}")
            raise GgufError(
                f"{path}: no GGUF file in this folder; make one with: moe-gguf quantize {path} --type Q4_K_M"
            )
        if kind_of_path(path) is not SourceKind.GGUF:
            raise GgufError(f"{path}: not a GGUF file; make one with: moe-gguf quantize {path} --type Q4_K_M")
        return path
    entry = catalogue_model(_name(argument), catalogue)
    found = gguf_of(entry)
    if found is None:
        command = "moe-gguf quantize" + (f" {argument}" if argument else "") + " --type Q4_K_M"
        raise CatalogueError(f"{entry.name}: no GGUF file in {entry.output} yet; make one with: {command}")
    return found


def gguf_of(entry: CatalogueModel) -> Path | None:
    """Return the best GGUF file of a catalogue model to run, or None while there is none."""
    found = best_gguf(entry.output)
    is_gguf = entry.path and entry.path.is_file() and kind_of_path(entry.path) is SourceKind.GGUF
    return found or (entry.path if is_gguf else None)


def not_here(source: ModelSource) -> MoeGgufError:
    """Return the error for a verb that needs the files of a model that is only described: a recipe or a hub id."""
    made = f"run moe-gguf convert {source.name} first" if source.entry else "run moe-gguf convert on it first"
    if source.hub:
        return CatalogueError(f"{source.name}: its weights are on the hub ({source.hub}), to be downloaded; {made}")
    return CatalogueError(f"{source.name}: a merge recipe ({source.where}) that has not been built yet; {made}")
