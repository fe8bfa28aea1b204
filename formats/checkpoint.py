"""A Hugging Face checkpoint folder, opened: config.json as it is, and its tensors over one or many shards."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckpointError
from .safetensors import SafetensorsFile
from .source import TensorInfo, TensorSource

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
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
    `ignored` are tensors that were left out already, each with the reason.
    """

    name: str
    source: TensorSource
    config: dict[str, Any]
    folder: Path
    card_folder: Path | None = None
    parents: tuple[Parent, ...] = ()
    license: str | None = None
    ignored: Mapping[str, str] = field(default_factory=dict)


class ShardedSource:
    """A TensorSource over several safetensors files."""

    def __init__(self, files: list[SafetensorsFile]) -> None:
        self._files = files
        self._homes: dict[str, SafetensorsFile] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for file in files:
            for name, info in file.tensors.items():
                if name in self._homes:
                    raise CheckpointError(
                        f"{file.path}: tensor {name!r} is also in {self._homes[name].path.name}; remove one of the two"
                    )
                self._homes[name], self.tensors[name] = file, info

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) of a tensor; see TensorSource."""
        return self._homes[name].read_rows(name, start, stop)

    def identity(self) -> dict[str, str]:
        """Return the identities of all shards; see TensorSource."""
        return {key: value for file in self._files for key, value in file.identity().items()}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError when it is missing, broken or not an object."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return content


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder and check every shard's header; reads no weight.

    Raises CheckpointError for a missing or truncated shard, an index that disagrees with the shards,
    or a folder without safetensors.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder with a checkpoint")
    config = read_json(folder / "config.json")
    source = open_tensors(folder)
    return Checkpoint(folder.resolve().name, source, config, folder, folder, read_parents(folder))


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


def open_tensors(folder: Path) -> TensorSource:
    """Open the safetensors of a folder: a single file, or the shards that its index names."""
    index_path = folder / INDEX_FILE
    if index_path.is_file():
        return _open_shards(folder, index_path)
    if (folder / SINGLE_FILE).is_file():
        return SafetensorsFile(folder / SINGLE_FILE)
    parts = sorted(folder.glob("model*.safetensors"))
    if parts:
        _check_numbering(parts)
        return ShardedSource([SafetensorsFile(part) for part in parts])
    if any(folder.glob("pytorch_model*.bin")):
        raise CheckpointError(f"{folder}: only pytorch_model*.bin; save the model as safetensors first")
    raise CheckpointError(f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}")


def _check_numbering(parts: list[Path]) -> None:
    """Refuse shards numbered `-of-N` that are not N; without an index nothing else would miss one."""
    for part in parts:
        total = part.stem.rpartition("-of-")[2]
        if total.isdecimal() and "-of-" in part.stem and int(total) != len(parts):
            raise CheckpointError(f"{part.parent}: {len(parts)} of {int(total)} shards are there, and no {INDEX_FILE}")


def _open_shards(folder: Path, index_path: Path) -> TensorSource:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index_path}: no weight_map from tensors to files")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if Path(shard).name != shard:
            raise CheckpointError(f"{index_path}: shard {shard!r} lies outside the folder")
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder / shard}: missing shard, named by {INDEX_FILE}; download or copy it")
    files = [SafetensorsFile(folder / shard) for shard in shards]
    source = ShardedSource(files)
    for name, shard in weight_map.items():
        if name not in source.tensors:
            raise CheckpointError(f"{index_path}: tensor {name!r} should be in {shard}, which does not have it")
    homes = {name: file.path.name for file in files for name in file.tensors}
    for name, shard in homes.items():
        if weight_map.get(name) != shard:
            said = f"in {weight_map[name]}" if name in weight_map else "nowhere"
            raise CheckpointError(f"{index_path}: tensor {name!r} is in {shard}, the index says {said}")
    return source
