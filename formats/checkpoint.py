"""A Hugging Face checkpoint folder, opened: config.json as it is, and its tensors over one or many shards."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import CheckpointError, by_repository
from .foreign import readable
from .source import TensorSource
from .weight_files import open_weights, read_json

# Where a tokenizer and its chat templates are kept.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
ADDITIONAL_TEMPLATES = "additional_chat_templates"
MERGE_RECIPES = ("mergekit_moe_config.yml", "mergekit_config.yml")


@dataclass(frozen=True)
class Parent:
    """A model that a merge was made of: `repo` is its hub id ("udkai/Turdus") or None, `name` is for reading.

    `folder` is where it lies, if it is here.
    """

    name: str
    repo: str | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A model before conversion, whether its files exist or a recipe stands for them.

    `config` is config.json as it is; `folder` holds the tokenizer; `card_folder` the model card and generation
    config of this very model, None when it has none; `parents` are the models that were merged, the base first;
    `ignored` are tensors that were left out already, each with the reason; `promised` those that only an index has,
    with the file it names; `notes` what the user should know of its files.
    """

    name: str
    source: TensorSource
    config: dict[str, Any]
    folder: Path
    card_folder: Path | None = None
    parents: tuple[Parent, ...] = ()
    license: str | None = None
    ignored: Mapping[str, str] = field(default_factory=dict)
    promised: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder and check every shard's header; reads no weight.

    Raises CheckpointError for a missing or truncated shard, an index that disagrees with the shards, weights that are
    no model's, or a folder without any.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder with a checkpoint")
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder}: a LoRA adapter, not a model (no config.json); name it in a recipe, as an expert's model+adapter"
        )
    config = read_json(folder / "config.json")
    weights = open_weights(folder)
    return Checkpoint(
        name=by_repository(str(folder.resolve())).replace("\\", "/").rpartition("/")[2],
        source=readable(weights.source, config, folder),
        config=config,
        folder=folder,
        card_folder=folder,
        parents=read_parents(folder),
        promised=weights.promised,
        notes=weights.notes,
    )


def read_parents(folder: Path) -> tuple[Parent, ...]:
    """Return the models that a merge was made of, from the mergekit config beside it; none when there is none.

    Raises CheckpointError when that file is not valid YAML.
    """
    import yaml

    for name in MERGE_RECIPES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
        if isinstance(recipe, dict):
            return tuple(dict.fromkeys(parent_of(model, folder) for model in _merged_models(recipe)))
    return ()


def parent_of(reference: str, folder: Path) -> Parent:
    """Return a parent from a recipe's reference: a hub id or a path (from `folder` or from here), perhaps "+lora"."""
    model, _, adapter = reference.partition("+")
    chosen = adapter or model
    here = next((path for path in (folder / chosen, Path(chosen)) if path.is_dir()), None)
    is_hub_id = here is None and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", chosen) is not None
    name = chosen.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return Parent(name, chosen if is_hub_id else None, here)


def _merged_models(recipe: Mapping[str, Any]) -> list[str]:
    """Return the base and then the sources of a mergekit-moe or mergekit recipe."""
    models = [recipe.get("base_model")]
    for key in ("experts", "shared_experts", "models"):
        entries = recipe.get(key)
        if isinstance(entries, list):
            models += [entry.get("source_model", entry.get("model")) for entry in entries if isinstance(entry, Mapping)]
    return [model for model in models if isinstance(model, str)]


def open_tensors(folder: Path, config: Mapping[str, Any] | None = None) -> TensorSource:
    """Open the weights of a folder as a model's; see `open_weights` and `readable`."""
    return readable(open_weights(folder).source, config or {}, folder)
