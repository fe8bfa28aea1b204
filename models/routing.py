"""What llama.cpp's graphs do with the weights of the chosen experts: an architecture's name in, whether they are
divided by their sum out.
"""

from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES

# The families written here; none of these graphs reads expert_weights_norm (`norm_w` of build_moe_ffn in
# src/models/*.cpp).
_RENORMALIZES = {
    MODEL_ARCH.LLAMA: True,
    MODEL_ARCH.GRANITE_MOE: True,
    MODEL_ARCH.QWEN3MOE: True,
    MODEL_ARCH.QWEN2MOE: False,
    MODEL_ARCH.DEEPSEEK: False,
}
_BY_NAME = {MODEL_ARCH_NAMES[arch]: does for arch, does in _RENORMALIZES.items()}


def runs_otherwise(architecture: str, asked: bool, n_expert: int, n_expert_used: int) -> bool:
    """Tell whether a graph of GGUF's `architecture` renormalizes although it is not asked to, or the other way round.

    With all experts chosen it makes no difference: their weights add up to one.
    """
    does = _BY_NAME.get(architecture)
    return does is not None and does is not asked and n_expert_used < n_expert
