"""The KV cache: a GGUF's hyper-parameters in, the values of a token's row in each layer's cache out.

Source: src/llama-kv-cache.cpp and src/llama-context.cpp of llama.cpp.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, Keys

CONTEXT_STEP = 256
MOST_LAYERS = 512  # LLAMA_MAX_LAYERS; a damaged header states four thousand million


@dataclass(frozen=True)
class CacheRows:
    """Values of one token's keys and values per layer, and of one head's."""

    k_rows: tuple[int, ...]
    v_rows: tuple[int, ...]
    k_head: int
    v_head: int

    def layer_bytes(self, n_ctx: int, k_type: GGMLQuantizationType, v_type: GGMLQuantizationType) -> list[int]:
        """Return the bytes of each layer's cache for one sequence of `n_ctx` tokens, as llama.cpp rounds them."""
        n_cells = rounded_context(n_ctx)
        (k_block, k_size), (v_block, v_size) = GGML_QUANT_SIZES[k_type], GGML_QUANT_SIZES[v_type]
        rows = zip(self.k_rows, self.v_rows, strict=True)
        return [n_cells * k // k_block * k_size + n_cells * v // v_block * v_size for k, v in rows]


def rounded_context(n_ctx: int) -> int:
    """Return the tokens that llama.cpp allots for a context: a multiple of 256."""
    return -(-n_ctx // CONTEXT_STEP) * CONTEXT_STEP


def cache_rows(hyper: Callable[[str], Any]) -> CacheRows:
    """Return the rows of a model whose hyper-parameters `hyper` looks up by `gguf.Keys`; what is no number is 0."""
    n_layer = min(whole(hyper(Keys.LLM.BLOCK_COUNT)), MOST_LAYERS)
    n_embd = whole(hyper(Keys.LLM.EMBEDDING_LENGTH))
    n_head = whole(hyper(Keys.Attention.HEAD_COUNT))
    stated = hyper(Keys.Attention.HEAD_COUNT_KV)
    heads = (
        list(map(whole, stated))
        if isinstance(stated, list)
        else [n_head if stated is None else whole(stated)] * n_layer
    )
    heads = (heads + [0] * n_layer)[:n_layer]
    width = n_embd // max(n_head, 1)
    k_head = whole(hyper(Keys.Attention.KEY_LENGTH)) or width
    v_head = whole(hyper(Keys.Attention.VALUE_LENGTH)) or width
    # with multi-head latent attention, V is a view of K
    latent = hyper(Keys.Attention.KEY_LENGTH_MLA) is not None
    return CacheRows(
        tuple(n * k_head for n in heads), tuple(0 if latent else n * v_head for n in heads), k_head, v_head
    )


def whole(value: Any) -> int:
    """Return a number of the metadata; one given per layer by its largest, anything else as 0."""
    if isinstance(value, list):
        return max((whole(item) for item in value), default=0)
    return int(value) if isinstance(value, (int, float)) and 0 <= value < 2**53 else 0
