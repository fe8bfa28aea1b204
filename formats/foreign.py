"""What programs other than transformers' save_pretrained leave in a checkpoint: told by its names, and read or refused.

A folder's stored tensors come in; the same go out under the names that we know, dequantized where that is exact. What
is something else than a model's weights is refused by what it is, with what to do.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from .dequantized import (
    FP8,
    DequantizedSource,
    Quantized,
    ValueSource,
    gptq_weights,
    packed_weights,
    scaled_weights,
)
from .errors import CheckpointError
from .renamed import RenamedSource
from .source import TensorSource
from .weight_files import read_json

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
# Modules that torch.compile and data-parallel training wrap around others.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_ddp_module"}
PEFT_PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "base_layer")
# Endings of tensors that quantized weights are made of, and who writes them.
TRACES = {
    ".weight_scale_inv": "fp8",
    "_proj_scale_inv": "fp8",
    ".qscale_weight": "fp8",
    ".g_idx": "gptq",
    ".qweight": "awq",
    ".SCB": "bitsandbytes",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    "bitsandbytes__nf4": "bitsandbytes",
    "bitsandbytes__fp4": "bitsandbytes",
    ".weight_packed": "compressed-tensors",
    "_blocks": "mxfp4",
    ".weight_scale_2": "modelopt",
}
# What weights are stored as when they are no numbers by themselves.
CODES = {"U8", "I8", "U16", "U32", "F8_E8M0", *FP8}


def readable(source: ValueSource, config: Mapping[str, Any], folder: Path) -> TensorSource:
    """Return a checkpoint's tensors as a model's. Raises CheckpointError for what they are instead."""
    _refuse_empty(source, folder)
    _refuse_peft(source, folder)
    return _renamed(_dequantized(source, config, folder), config, folder)


def _refuse_empty(source: TensorSource, folder: Path) -> None:
    for name, info in source.tensors.items():
        if prod(info.shape) == 0:
            raise CheckpointError(
                f"{folder}: {name} has the shape {list(info.shape)}, no weights: ZeRO-3 or FSDP kept them on several "
                "machines when it was saved; make it whole with DeepSpeed's zero_to_fp32.py, or save it anew with "
                "stage3_gather_16bit_weights_on_model_save"
            )


def _refuse_peft(source: TensorSource, folder: Path) -> None:
    found = [name for name in source.tensors if any(part in PEFT_PARTS for part in name.split("."))]
    if not found:
        return
    if len(found) == len(source.tensors) and not any(".base_layer." in name for name in found):
        raise CheckpointError(
            f"{folder}: its weights are a LoRA adapter ({found[0]}), not a model; name it in a recipe, as an expert's "
            "model+adapter"
        )
    raise CheckpointError(
        f"{folder}: a model with a PEFT adapter that is not merged into it ({found[0]}); load it with PEFT and save "
        "what merge_and_unload() returns"
    )


def _dequantized(source: ValueSource, config: Mapping[str, Any], folder: Path) -> ValueSource | DequantizedSource:
    """Return the weights as numbers; a config that says quantized of weights that are not is no matter."""
    method = _method(source, config, folder)
    if method is None:
        return source
    said = _quantization(config, folder)
    weights: dict[str, Quantized] | None = None
    try:
        if method == "fp8":
            weights = scaled_weights(source, _block(said.get("weight_block_size")))
        elif method == "gptq":
            bits = said.get("bits", _bits_of_gptq(source))
            weights = gptq_weights(source, bits, said.get("checkpoint_format", "gptq") == "gptq")
        elif method == "compressed-tensors":
            weights = _compressed(source, said)
        elif method == "modelopt" and not any(info.dtype == "U8" for info in source.tensors.values()):
            weights = scaled_weights(source, None)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    if not weights:
        raise CheckpointError(f"{folder}: {_quantized_by(method, said)}; {_what_to_do(method, folder)}")
    return DequantizedSource(source, weights)


def _method(source: TensorSource, config: Mapping[str, Any], folder: Path) -> str | None:
    """Return who quantized the weights, or None where they are numbers."""
    dtypes = {info.dtype for name, info in source.tensors.items() if name.endswith((".weight", "_proj"))}
    traces = [who for name in source.tensors for end, who in TRACES.items() if name.endswith(end)]
    codes = dtypes & CODES
    if not traces and not codes:
        return None
    said = _quantization(config, folder)
    if not traces and not said and codes <= set(FP8) and not any("_scale" in name for name in source.tensors):
        return None  # numbers of 8 bits, not codes that scales belong to
    method = said.get("quant_method") or said.get("quant_type")
    if isinstance(method, str):
        return method.lower()
    if traces:
        return "gptq" if "gptq" in traces else traces[0]
    if isinstance(config.get("quantization"), Mapping) or "U32" in dtypes:
        return "mlx"
    if dtypes & set(FP8):
        return "fp8"
    return "compressed-tensors" if any(name.endswith(".weight_scale") for name in source.tensors) else "another program"


def _quantization(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Return what config.json says of its quantization; older GPTQ checkpoints have a file of their own for it."""
    for key in ("quantization_config", "compression_config"):
        nested = [
            config,
            *(config[k] for k in ("text_config", "language_config") if isinstance(config.get(k), Mapping)),
        ]
        for one in nested:
            if isinstance(one.get(key), Mapping):
                return one[key]
    path = folder / "quantize_config.json"
    return read_json(path) if path.is_file() else {}


def _block(said: Any) -> tuple[int, int] | None:
    if said is None:
        return None
    if isinstance(said, list) and len(said) == 2 and all(type(n) is int and n > 0 for n in said):
        return said[0], said[1]
    raise CheckpointError(f"config.json: weight_block_size is {said!r:.80}, not two whole numbers")


def _bits_of_gptq(source: TensorSource) -> int | None:
    """Return the bits of a GPTQ checkpoint that does not state them: 32 inputs are that many words."""
    for name, info in source.tensors.items():
        index = source.tensors.get(name.removesuffix(".qweight") + ".g_idx")
        if name.endswith(".qweight") and index and index.shape and index.shape[0]:
            return 32 * info.shape[0] // index.shape[0]
    return None


def _compressed(source: ValueSource, said: Mapping[str, Any]) -> dict[str, Quantized] | None:
    """Return the weights of the formats of compressed-tensors that llama.cpp's converter reads, None for others."""
    groups = said.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        return None
    group = next(iter(groups.values()))
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    if said.get("format") == "pack-quantized" and weights.get("strategy") == "group":
        return packed_weights(source, weights.get("num_bits"), weights.get("group_size"))
    if said.get("format") in ("float-quantized", "int-quantized", "naive-quantized"):
        if weights.get("symmetric") is False:
            return None
        return scaled_weights(source, _block(weights.get("block_structure")))
    return None


NAMES = {
    "bitsandbytes": "bitsandbytes",
    "awq": "AWQ",
    "gptq": "GPTQ",
    "fp8": "FP8",
    "mxfp4": "MXFP4",
    "mlx": "MLX",
    "hqq": "HQQ",
    "aqlm": "AQLM",
    "modelopt": "NVIDIA ModelOpt",
}


def _quantized_by(method: str, said: Mapping[str, Any]) -> str:
    bits = ""
    if method == "bitsandbytes":
        bits = " (8 bits)" if said.get("load_in_8bit") else " (4 bits)" if said.get("load_in_4bit") else ""
    elif isinstance(said.get("bits") or said.get("w_bit"), int):
        bits = f" ({said.get('bits') or said.get('w_bit')} bits)"
    elif isinstance(said.get("format"), str):
        bits = f" ({said['format']})"
    return f"its weights are quantized by {NAMES.get(method, method)}{bits}, which is not read"


def _what_to_do(method: str, folder: Path) -> str:
    base = base_of_card(folder)
    other = f"convert the model that it was made of{f' ({base})' if base else ''}"
    if method == "bitsandbytes":
        return f"{other}, or load it with transformers and save what model.dequantize() returns"
    return other


def base_of_card(folder: Path) -> str | None:
    """Return the base that a model card's metadata names."""
    import yaml

    path = folder / "README.md"
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        metadata = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, IndexError, yaml.YAMLError, ValueError, RecursionError):
        return None
    base = metadata.get("base_model") if isinstance(metadata, dict) else None
    base = base[0] if isinstance(base, list) and base else base
    return base if isinstance(base, str) else None


def _renamed(source: TensorSource, config: Mapping[str, Any], folder: Path) -> TensorSource:
    """Take away what wraps a model: parts of training, and the prefix under which its text model lies.

    A multimodal config's own prefixes stay: they tell its parts apart.
    """
    names: dict[str, str] = {}
    for name in source.tensors:
        ours = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        while ours.startswith(("module.", "base_model.model.")):
            ours = ours.removeprefix("module.").removeprefix("base_model.model.")
        if ours in names:
            raise CheckpointError(f"{folder}: {names[ours]} and {name} are the same tensor; remove one of them")
        names[ours] = name
    if not any(isinstance(config.get(key), Mapping) for key in ("text_config", "llm_config", "language_config")):
        names = _without_prefix(names)
    return source if all(ours == theirs for ours, theirs in names.items()) else RenamedSource(source, names)


def _without_prefix(names: dict[str, str]) -> dict[str, str]:
    """Return names as `model.` and `lm_head.`, where another prefix, or none, stands before the embedding."""
    found = [name for name in names if name == EMBEDDING or name.endswith("." + EMBEDDING)]
    if len(found) != 1 or found[0] == f"model.{EMBEDDING}":
        return names
    prefix = found[0].removesuffix(EMBEDDING)
    outer = prefix.removesuffix("model.") if prefix.endswith("model.") else prefix
    heads = {prefix + HEAD, outer + HEAD, "language_model." + HEAD}
    renamed = {}
    for ours, theirs in names.items():
        if ours in heads:
            renamed[HEAD] = theirs
        elif ours.startswith(prefix) and ours != HEAD:
            renamed["model." + ours.removeprefix(prefix)] = theirs
        else:
            renamed[ours] = theirs
    return renamed if len(renamed) == len(names) else names
