"""The files that hold a checkpoint's weights: which of a folder's are read, and whether its index agrees with them.

As transformers does: model.safetensors, else the shards that its index names, else pytorch_model.bin, else its shards.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .errors import CheckpointError
from .safetensors import SafetensorsFile
from .source import TensorInfo, TensorSource
from .torch_file import TorchFile

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TORCH_FILE = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
# Tensors that checkpoints carry along and that nothing reads: their endings, and why they are left out.
NOT_NEEDED = {
    ".rotary_emb.inv_freq": "recomputed by llama.cpp",
    ".attention.masked_bias": "a constant",
    ".attention.bias": "a constant",
}


class StoredFile(TensorSource, Protocol):
    """A TensorSource over one file, which can also read a part of a row."""

    path: Path

    def read_values(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return values [start, stop) of a tensor, counted through all of its rows."""
        ...


@dataclass(frozen=True)
class Weights:
    """A folder's weights, opened.

    `promised` are tensors that only the index has, with the file that it names; `notes` are what the user should know.
    """

    source: "ShardedSource"
    promised: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class ShardedSource:
    """A TensorSource over one or several files."""

    def __init__(self, files: Sequence[StoredFile]) -> None:
        self._files = files
        self._homes: dict[str, StoredFile] = {}
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

    def read_values(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return values [start, stop) of a tensor, counted through all of its rows."""
        return self._homes[name].read_values(name, start, stop)

    def home(self, name: str) -> str:
        """Return the name of the file that a tensor lies in."""
        return self._homes[name].path.name

    def identity(self) -> dict[str, str]:
        """Return the identities of all files; see TensorSource."""
        return {key: value for file in self._files for key, value in file.identity().items()}


def open_file(path: Path) -> StoredFile:
    """Open a file of weights, by its ending."""
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


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


def open_weights(folder: Path) -> Weights:
    """Open a folder's weights and check every file's header; reads no weight.

    Raises CheckpointError for files that are missing or broken, and for an index that disagrees with them.
    """
    for single, index in ((SINGLE_FILE, INDEX_FILE), (TORCH_FILE, TORCH_INDEX)):
        if (folder / single).is_file():
            return _single(folder / single, folder / index)
        if (folder / index).is_file():
            return _indexed(folder, folder / index)
        parts = _numbered(folder, single)
        if parts:
            _check_numbering(parts, index)
            return Weights(ShardedSource([open_file(part) for part in parts]))
    raise CheckpointError(f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}{_instead(folder)}")


def indexed_files(index_path: Path) -> list[str]:
    """Return the files that an index names. Raises CheckpointError for a broken index, or files outside its folder."""
    shards = sorted(set(_weight_map(index_path).values()))
    for shard in shards:
        if Path(shard).name != shard or "\\" in shard:
            raise CheckpointError(f"{index_path}: shard {shard!r} lies outside the folder")
    return shards


def _weight_map(index_path: Path) -> dict[str, str]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index_path}: no weight_map from tensors to files")
    return weight_map


def _numbered(folder: Path, single: str) -> list[Path]:
    """Return the shards of a file by that name, found by their names alone."""
    stem, suffix = single.rsplit(".", 1)
    return sorted(folder.glob(f"{stem}*.{suffix}"))


def _check_numbering(parts: list[Path], index: str) -> None:
    """Refuse shards numbered `-of-N` that are not N; without an index nothing else would miss one."""
    for part in parts:
        total = part.stem.rpartition("-of-")[2]
        if total.isdecimal() and "-of-" in part.stem and int(total) != len(parts):
            raise CheckpointError(f"{part.parent}: {len(parts)} of {int(total)} shards are there, and no {index}")


def _single(path: Path, index_path: Path) -> Weights:
    """Open the one file of a model, and tell of an index beside it that is of another saving."""
    source = ShardedSource([open_file(path)])
    if not index_path.is_file():
        return Weights(source)
    try:
        weight_map = _weight_map(index_path)
    except CheckpointError:
        return Weights(source)
    others = sorted({shard for shard in weight_map.values() if shard != path.name})
    if not others:
        return Weights(source, {name: shard for name, shard in weight_map.items() if name not in source.tensors})
    note = (
        f"{path} is read, as transformers does; {index_path.name} beside it names other files ({others[0]}"
        f"{', ...' if len(others) > 1 else ''}); delete the one that is out of date"
    )
    promised = {name: shard for name, shard in weight_map.items() if name not in source.tensors}
    return Weights(source, promised, (note,))


def _indexed(folder: Path, index_path: Path) -> Weights:
    """Open the shards that an index names."""
    weight_map, shards = _weight_map(index_path), indexed_files(index_path)
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(_missing_shards(folder, index_path, missing, set(shards)))
    source = ShardedSource([open_file(folder / shard) for shard in shards])
    for name in source.tensors:
        if (shard := source.home(name)) != weight_map.get(name):
            said = f"in {weight_map[name]}" if name in weight_map else "nowhere"
            raise CheckpointError(
                f"{index_path}: tensor {name!r} is in {shard}, the index says {said}; it is of another saving: "
                f"delete {index_path.name} if the files here are whole, or download all of them again"
            )
    return Weights(source, {name: shard for name, shard in weight_map.items() if name not in source.tensors})


def _missing_shards(folder: Path, index_path: Path, missing: list[str], shards: set[str]) -> str:
    """Say which shards are missing, and whether others are there that the index does not know."""
    others = [path.name for path in sorted(folder.glob(f"*{Path(missing[0]).suffix}")) if path.name not in shards]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    if others:
        return (
            f"{folder / missing[0]}{more}: missing shard, named by {index_path.name}; {others[0]} is here, which it "
            f"does not name: delete {index_path.name} if that belongs to the model, or download what it names"
        )
    return f"{folder / missing[0]}{more}: missing shard, named by {index_path.name}; download or copy it"


def _instead(folder: Path) -> str:
    """Say what a folder without weights that are read has instead."""
    if any(folder.glob("adapter_model.*")) or (folder / "adapter_config.json").is_file():
        return "; it is a LoRA adapter, not a model: name it in a recipe as an expert's model+adapter"
    kinds = {
        "*.gguf": "GGUF, already converted: name the model that it was made of",
        "consolidated*.safetensors": "Mistral's own format: download the files of transformers' format too",
        "consolidated*.pth": "Meta's own format: convert it with transformers' convert_llama_weights_to_hf.py",
        "*.msgpack": "Flax weights: save the model with transformers' save_pretrained first",
        "*.h5": "TensorFlow weights: save the model with transformers' save_pretrained first",
        "*.npz": "MLX or NumPy weights: save the model as safetensors first",
        "*.distcp": "a distributed checkpoint: consolidate it (accelerate merge-weights) first",
        "*_model_states.pt": "a checkpoint of DeepSpeed: make it whole with its zero_to_fp32.py first",
        "*.safetensors": "tensors of another name: call the file model.safetensors if it is the model",
        "*.bin": "files of another name: call the file pytorch_model.bin if it is the model",
        "*.pt": "files of another name: call the file pytorch_model.bin if it is the model",
    }
    for pattern, what in kinds.items():
        found = sorted(path.name for path in folder.glob(pattern))
        if found:
            return f"; {found[0]} is there, {what}"
    return "; download or copy the weights"


def missing_tensor(name: str, tensors: Mapping[str, TensorInfo], promised: Mapping[str, str]) -> str:
    """Return how to say that a tensor is missing: what the index says of it, and what is there in its stead."""
    if name in promised:
        return (
            f"tensor {name} is missing: the index says that {promised[name]} has it, which it does not; copy it again"
        )
    start = name.rpartition(".")[0] + "."
    near = next((other for other in tensors if other.startswith(start)), None)
    if near:
        return f"tensor {name} is missing, {near} is there instead; was the checkpoint saved by another program?"
    if not any(other.startswith(name.split(".")[0] + ".") for other in tensors) and tensors:
        first = next(iter(tensors))
        return f"tensor {name} is missing, tensors here have names such as {first}; does config.json belong to them?"
    return f"tensor {name} is missing; is the checkpoint whole?"
