"""Rotary embeddings: the metadata of a scaling, and Llama 3's factors, which GGUF stores as a tensor."""

import math
from collections.abc import Iterator

import numpy as np
from gguf.constants import Keys, RopeScalingType

from ..formats.config import ModelConfig
from ..formats.errors import CheckpointError

Number = float | int


def rope_factors(config: ModelConfig) -> np.ndarray | None:
    """Return Llama 3's divisors of the frequencies, float32 [head_dim / 2], or None for other kinds.

    Source: LlamaModel.generate_extra_tensors in llama.cpp's conversion/llama.py.
    """
    rope = config.rope
    if str(rope.get("rope_type", "")).lower() != "llama3":
        return None
    head = config.n_embd_head
    exponents = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
    frequencies = np.float32(1) / np.power(np.float32(rope.get("rope_theta", 10000.0)), exponents)
    factor, context = rope.get("factor", 8.0), rope.get("original_max_position_embeddings", 8192)
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
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
    rope = config.rope
    kind, factor = str(rope.get("rope_type") or "default").lower(), rope.get("factor")
    keys = Keys.Rope
    if kind in ("linear", "yarn") and factor is not None:
        yield keys.SCALING_TYPE.format(arch=arch), RopeScalingType(kind).value
        yield keys.SCALING_FACTOR.format(arch=arch), float(factor)
        if kind == "yarn":
            yield from _yarn_fields(config, arch)
    elif kind in ("su", "longrope"):
        yield keys.SCALING_TYPE.format(arch=arch), RopeScalingType.LONGROPE.value
    elif kind not in ("default", "llama3", "dynamic", "linear", "yarn"):
        raise CheckpointError(f"config.json: rope_type {rope.get('rope_type')!r} is not supported")
    if rope.get("rope_theta") is not None:
        yield keys.FREQ_BASE.format(arch=arch), float(rope["rope_theta"])


def _yarn_fields(config: ModelConfig, arch: str) -> Iterator[tuple[str, Number]]:
    rope, keys = config.rope, Keys.Rope
    context = rope.get("original_max_position_embeddings")
    if context is None:
        raise CheckpointError("config.json: a yarn scaling without original_max_position_embeddings; add it")
    yield keys.SCALING_ORIG_CTX_LEN.format(arch=arch), int(context)
    for key, *names in (
        (keys.SCALING_YARN_EXT_FACTOR, "extrapolation_factor"),
        (keys.SCALING_YARN_ATTN_FACTOR, "attention_factor", "attn_factor"),
        (keys.SCALING_YARN_BETA_FAST, "beta_fast"),
        (keys.SCALING_YARN_BETA_SLOW, "beta_slow"),
    ):
        value = next((rope[name] for name in names if rope.get(name) is not None), None)
        if value is not None:
            yield key.format(arch=arch), float(value)
