"""Llama, Mistral, and Mixtral, which merges of both become."""

from ..config_keys import Sizes, common_keys, expert_keys
from ..family import Count, Family, Mixture
from ..graphs import LLAMA
from .parts import ROUTER, attention, experts, mlp

LLAMA_FAMILY = Family(
    "LlamaForCausalLM",
    "llama",
    LLAMA,
    common_keys(Sizes(32, 4096, 11008, 32, 32000), n_ctx=2048),
    attention(),
    dense=mlp("mlp"),
    states_head_dim="always",
)
MISTRAL = Family(
    "MistralForCausalLM",
    "mistral",
    LLAMA,
    common_keys(Sizes(32, 4096, 14336, 32, 32000), n_ctx=131072, n_head_kv=8),
    attention(),
    dense=mlp("mlp"),
    states_head_dim="always",
)
MIXTRAL = Family(
    "MixtralForCausalLM",
    "mixtral",
    LLAMA,
    (
        *common_keys(Sizes(32, 4096, 14336, 32, 32000), n_ctx=131072, n_head_kv=8, rms_norm_eps=1e-5, rope_theta=1e6),
        *expert_keys(8, 2),
    ),
    attention(),
    router=(ROUTER,),
    experts=experts("block_sparse_moe", "w1", "w3", "w2"),
    renormalizing="always",
    mixture=Mixture(
        takes=("llama", "mistral"),
        config=(
            ("num_local_experts", Count.EXPERTS),
            ("num_experts_per_tok", Count.USED),
            ("sliding_window", None),
            ("output_router_logits", False),
            ("router_aux_loss_coef", 0.001),
        ),
    ),
)
