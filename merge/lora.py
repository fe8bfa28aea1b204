"""PEFT LoRA adapters: a folder comes in, the change of any range of a weight's rows goes out.

The arithmetic is that of PEFT's merge_and_unload: the change is computed and added in float32, and the sum rounded
once to the weight's own type.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..formats.errors import RecipeError
from ..formats.floats import widen
from ..formats.safetensors import SafetensorsFile
from ..formats.source import TensorSource
from ..formats.weight_files import read_json
from .fields import LARGEST

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
# B is multiplied in blocks of rows that begin at multiples of this, so that sums do not depend on the range asked for.
BLOCK = 64
# Products of at most this many multiplications are done by OpenBLAS in the calling thread: the slabs are spread over
# threads already, and its own threads would wait for one another.
SINGLE_THREAD = 2**18


@dataclass(frozen=True, order=True)
class Factor:
    """The change of one weight: scale * B @ A with A [rank, row_length] and B [n_rows, rank]."""

    a: str
    b: str
    scale: float


@dataclass(frozen=True)
class Lora:
    """An opened adapter. `factors` goes by the weight's name in the dense model; `ignored` is what it also has."""

    name: str
    folder: Path
    source: TensorSource
    factors: Mapping[str, Factor]
    ignored: tuple[str, ...] = ()


def open_lora(folder: Path, base: TensorSource) -> Lora:
    """Open a PEFT LoRA adapter made for a model with the tensors of `base`; reads no weight.

    Raises RecipeError: files missing, another kind of adapter (DoRA, ...), or made for another base.
    """
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise RecipeError(f"{folder}: no {file}; a LoRA adapter as PEFT saves it is needed")
    config = read_json(folder / CONFIG_FILE)
    _check_kind(folder, config)
    _check_patterns(folder, config)
    source = SafetensorsFile(folder / WEIGHTS_FILE)
    factors: dict[str, Factor] = {}
    ignored: list[str] = []
    for name in source.tensors:
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            factors[module.removeprefix(PREFIX) + ".weight"] = _factor(folder, source, config, module)
        elif not name.endswith(".lora_B.weight"):
            ignored.append(name.removeprefix(PREFIX))
    if not factors:
        raise RecipeError(f"{folder / WEIGHTS_FILE}: no lora_A tensors; is it a LoRA adapter?")
    for weight, factor in factors.items():
        _check_fit(folder, weight, factor, source, base)
    return Lora(folder.name, folder, source, factors, tuple(ignored))


def change(lora: Lora, weight: str, start: int, stop: int) -> np.ndarray:
    """Return what the adapter adds to rows [start, stop) of a weight: float32 [stop - start, row_length]."""
    factor = lora.factors[weight]
    rank, row_length = lora.source.tensors[factor.a].shape
    n_rows = lora.source.tensors[factor.b].shape[0]
    a = widen(lora.source.read_rows(factor.a, 0, rank))
    low, high = start // BLOCK * BLOCK, min(-(-stop // BLOCK) * BLOCK, n_rows)
    b = widen(lora.source.read_rows(factor.b, low, high))
    product = np.empty((high - low, row_length), np.float32)
    width = max(1, SINGLE_THREAD // (BLOCK * rank))
    for row in range(0, high - low, BLOCK):
        for column in range(0, row_length, width):
            part = slice(column, column + width)
            np.matmul(b[row : row + BLOCK], a[:, part], out=product[row : row + BLOCK, part])
    product *= np.float32(factor.scale)
    return product[start - low : stop - low]


def changes(lora: Lora, weight: str) -> bool:
    """Tell whether an adapter changes a weight at all: fresh ones have a B of zeros."""
    factor = lora.factors[weight]
    infos = [(name, lora.source.tensors[name].n_rows) for name in (factor.b, factor.a)]
    return factor.scale != 0 and all(widen(lora.source.read_rows(name, 0, rows)).any() for name, rows in infos)


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise RecipeError(f"{folder}: the adapter is of type {kind!r}; only LORA can be folded into weights here")
    for key in ("use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication", "target_parameters"):
        if config.get(key):
            raise RecipeError(f"{folder}: the adapter uses {key}, which is not supported; merge it with PEFT first")


def _factor(folder: Path, source: TensorSource, config: Mapping[str, Any], module: str) -> Factor:
    a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
    if b not in source.tensors:
        raise RecipeError(f"{folder / WEIGHTS_FILE}: {a} is there without {b}")
    name = module.removeprefix(PREFIX)
    rank = _for_module(config.get("rank_pattern"), name, config.get("r"))
    alpha = _for_module(config.get("alpha_pattern"), name, config.get("lora_alpha"))
    shape_a, shape_b = source.tensors[a].shape, source.tensors[b].shape
    if len(shape_a) != 2 or len(shape_b) != 2 or shape_a[0] != shape_b[1] or shape_a[0] != rank or not rank:
        raise RecipeError(
            f"{folder}: {name}: factors {list(shape_a)} and {list(shape_b)} do not fit the rank {rank} of {CONFIG_FILE}"
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= LARGEST:
        raise RecipeError(f"{folder / CONFIG_FILE}: lora_alpha of {name} is {alpha!r}, not a number")
    return Factor(a, b, alpha / rank**0.5 if config.get("use_rslora") else alpha / rank)


def _for_module(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return a module's own rank or alpha. Source: get_pattern_key in peft/utils/other.py."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _check_patterns(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse patterns of modules that are none."""
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        if not isinstance(pattern, Mapping):
            raise RecipeError(f"{folder / CONFIG_FILE}: {key} is {pattern!r}, not an object")
        for part in pattern:
            try:
                re.compile(part)
            except re.error as error:
                raise RecipeError(f"{folder / CONFIG_FILE}: {key} has {part!r}, no pattern: {error}") from error


def _check_fit(folder: Path, weight: str, factor: Factor, source: TensorSource, base: TensorSource) -> None:
    if weight not in base.tensors:
        raise RecipeError(f"{folder}: a LoRA for another base: it changes {weight}, which the model does not have")
    shape = (source.tensors[factor.b].shape[0], source.tensors[factor.a].shape[1])
    if base.tensors[weight].shape != shape:
        raise RecipeError(
            f"{folder}: a LoRA for another base: it changes {weight} as {list(shape)}, "
            f"the model's is {list(base.tensors[weight].shape)}"
        )
