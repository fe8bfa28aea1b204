"""Rotary embeddings: the metadata of a scaling, and Llama 3's factors, which GGUF stores as a tensor."""

import math
from collections.abc import Iterator

import numpy as np
from gguf.constants import Keys, RopeScalingType

from ..formats.errors import CheckpointError
from ..models.config import positive_number
from ..models.model_config import ModelConfig

Number = float | int


def rope_factors(config: ModelConfig) -> np.ndarray | None:
    """Return Llama 3's divisors of the frequencies, float32 [head_dim / 2], or None for other kinds.

    Source: LlamaModel.generate_extra_tensors in llama.cpp's conversion/llama.py. Raises CheckpointError for
    numbers that cannot be.
    """
    if config.rope_type != "llama3":
        return None
    head = config.n_embd_head
    exponents = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
    frequencies = np.float32(1) / np.power(np.float32(config.rope["rope_theta"]), exponents)
    factor = _number(config, "factor")
    context = _number(config, "original_max_position_embeddings")
    low, high = _number(config, "low_freq_factor"), _number(config, "high_freq_factor")
    if low >= high:
        raise CheckpointError(f"config.json: low_freq_factor {low} is not below high_freq_factor {high}")
    factors = []
    for frequency in frequencies:
        wavelength = np.float32(2 * math.pi) / frequency
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
            factors.append(1 / ((1 - smooth) / np.float32(factor) + smooth))
    return np.array(factors, np.float32)


def rope_fields(config: ModelConfig, arch: str) -> Iterator[tuple[str, str | Number]]:
    """Yield the keys of a scaling and of the base frequency. Raises CheckpointError for an unknown kind.

    Source: TextModel.set_gguf_parameters in llama.cpp's conversion/base.py.
    """
    kind, keys = config.rope_type, Keys.Rope
    if kind in ("linear", "yarn"):
        yield keys.SCALING_TYPE.format(arch=arch), RopeScalingType(kind).value
        yield keys.SCALING_FACTOR.format(arch=arch), _number(config, "factor")
        if kind == "yarn":
            yield from _yarn_fields(config, arch)
    elif kind not in ("default", "llama3", "dynamic"):
        raise CheckpointError(f"config.json: rope_type {config.rope.get('rope_type')!r} is not supported")
    yield keys.FREQ_BASE.format(arch=arch), config.rope["rope_theta"]


def _yarn_fields(config: ModelConfig, arch: str) -> Iterator[tuple[str, Number]]:
    keys = Keys.Rope
    yield keys.SCALING_ORIG_CTX_LEN.format(arch=arch), int(_number(config, "original_max_position_embeddings"))
    for key, *names in (
        (keys.SCALING_YARN_EXT_FACTOR, "extrapolation_factor"),
        (keys.SCALING_YARN_ATTN_FACTOR, "attention_factor", "attn_factor"),
        (keys.SCALING_YARN_BETA_FAST, "beta_fast"),
        (keys.SCALING_YARN_BETA_SLOW, "beta_slow"),
    ):
        name = next((name for name in names if config.rope.get(name) is not None), None)
        if name is not None:
            yield key.format(arch=arch), _number(config, name)


def _number(config: ModelConfig, name: str) -> float:
    value = config.rope.get(name)
    if value is None:
        raise CheckpointError(f"config.json: a {config.rope_type} scaling of rope without {name}; add it")
    return positive_number(value, name, "config.json")
