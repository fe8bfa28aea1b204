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
from ..formats.source import TensorSource
from ..formats.weight_files import open_file, read_json
from .fields import LARGEST

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
# "lora_A.weight" as PEFT saves an adapter, "lora_A.default.weight" as a model's state_dict has it.
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<letter>[AB])(?P<adapter>\.[^.]+)?\.weight")
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
    if not (folder / CONFIG_FILE).is_file():
        model = (folder / "config.json").is_file()
        more = "it is a model: name it without a + before it" if model else "a LoRA adapter as PEFT saves it is needed"
        raise RecipeError(f"{folder}: no {CONFIG_FILE}; {more}")
    path = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if path is None:
        raise RecipeError(f"{folder}: no {' and no '.join(WEIGHTS_FILES)}; a LoRA adapter as PEFT saves it is needed")
    config = read_json(folder / CONFIG_FILE)
    _check_kind(folder, config)
    _check_patterns(folder, config)
    source = open_file(path)
    factors: dict[str, Factor] = {}
    ignored: list[str] = []
    for name in source.tensors:
        if found := FACTOR.fullmatch(name):
            if found["letter"] == "A":
                weight = _module_name(found["module"]) + ".weight"
                if weight in factors:
                    raise RecipeError(f"{path}: two adapters change {weight}; save each into a folder of its own")
                factors[weight] = _factor(path, source, config, found)
        else:
            _refuse_unfoldable(path, name)
            ignored.append(_module_name(name))
    if not factors:
        raise RecipeError(f"{path}: no lora_A tensors; is it a LoRA adapter?")
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
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "loftq")):
        raise RecipeError(
            f"{folder}: the adapter began with init_lora_weights {start!r}, which changes the base too; merge it with "
            "PEFT first"
        )
    for key in ("use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication", "target_parameters"):
        if config.get(key):
            raise RecipeError(f"{folder}: the adapter uses {key}, which is not supported; merge it with PEFT first")


def _module_name(name: str) -> str:
    """Return a module's name in the dense model, without what PEFT and torch.compile put before it."""
    return name.replace("_orig_mod.", "").removeprefix("module.").removeprefix(PREFIX)


def _refuse_unfoldable(path: Path, name: str) -> None:
    """Refuse tensors that change a weight in another way than B @ A: what they do would be lost without a word.

    Layers that were trained as a whole (modules_to_save) are let pass where the mixture takes the base's instead.
    """
    kinds = {
        "lora_magnitude_vector": "DoRA",
        ".lora_bias": "lora_bias",
        "lora_E": "AdaLoRA",
        "lora_mask": "AdaLoRA",
        "hada_w": "LoHa",
        "lokr_w": "LoKr",
        "ia3_l": "IA3",
        "oft_r": "OFT",
        "vera_lambda": "VeRA",
        "fourierft_spectrum": "FourierFT",
        "prompt_embeddings": "prompt tuning",
    }
    kind = next((kind for part, kind in kinds.items() if part in name), None)
    if kind is None and ".lora_B." in name and name.endswith(".bias"):
        kind = "lora_bias"
    if kind:
        raise RecipeError(f"{path}: {name} is of {kind}, which is not supported; merge the adapter with PEFT first")
    weight = _module_name(name).replace(".modules_to_save.default", "").replace(".modules_to_save", "")
    if ".mlp." in weight and weight.endswith(".weight"):
        raise RecipeError(
            f"{path}: {name} replaces a whole weight of an expert (modules_to_save); merge the adapter with PEFT first"
        )


def _factor(path: Path, source: TensorSource, config: Mapping[str, Any], found: "re.Match[str]") -> Factor:
    folder, a = path.parent, found[0]
    b = f"{found['module']}.lora_B{found['adapter'] or ''}.weight"
    if b not in source.tensors:
        raise RecipeError(f"{path}: {a} is there without {b}")
    name = _module_name(found["module"])
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
