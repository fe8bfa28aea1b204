"""Qwen2 and Qwen3, dense and as mixtures."""

from gguf.constants import MODEL_TENSOR

from ..config_keys import EVERY_LAYER, NO_DENSE_AMONG, SILU, WHOLE_HEADS, Key, Sizes, common_keys, expert_keys
from ..family import Count, Family, Instead, Mixture, Single
from ..graphs import LLAMA, QWEN2, QWEN2MOE, QWEN3, QWEN3MOE
from .parts import HEAD_NORMS, LAYER, MLP_EXPERTS, ROUTER, attention, mlp

_SIZES = Sizes(32, 4096, 22016, 32, 151936)
_NORM_TOPK = Key("norm_topk_prob", ("norm_topk_prob",), False, "flag")
_FIXED = (SILU, WHOLE_HEADS, NO_DENSE_AMONG, EVERY_LAYER)

QWEN2_FAMILY = Family(
    "Qwen2ForCausalLM",
    "qwen2",
    QWEN2,
    common_keys(_SIZES, n_ctx=32768, n_head_kv=32),
    attention(),
    dense=mlp("mlp"),
)
QWEN3_FAMILY = Family(
    "Qwen3ForCausalLM",
    "qwen3",
    QWEN3,
    common_keys(_SIZES, n_ctx=32768, n_head_kv=32, head_dim=128),
    attention(HEAD_NORMS),
    dense=mlp("mlp"),
)
QWEN2_MOE = Family(
    "Qwen2MoeForCausalLM",
    "qwen2_moe",
    QWEN2MOE,
    (
        *common_keys(Sizes(24, 2048, 5632, 16, 151936), n_ctx=32768, n_head_kv=16),
        *expert_keys(60, 4),
        Key("n_ff_expert", ("moe_intermediate_size",), 1408),
        Key("n_ff_shared", ("shared_expert_intermediate_size",), 5632),
        _NORM_TOPK,
    ),
    attention(),
    router=(ROUTER,),
    experts=MLP_EXPERTS,
    shared=(
        Single(MODEL_TENSOR.FFN_GATE_INP_SHEXP, (LAYER + "mlp.shared_expert_gate.weight",), (1, "n_embd")),
        *mlp("mlp.shared_expert", "_SHEXP", "n_ff_shexp"),
    ),
    instead=(Instead(LLAMA, shared=False),),
    fixed=_FIXED,
    mixture=Mixture(
        takes=("llama", "mistral", "qwen2"),
        config=(
            ("num_experts", Count.EXPERTS),
            ("num_experts_per_tok", Count.USED),
            ("decoder_sparse_step", 1),
            ("norm_topk_prob", True),
            ("sliding_window", None),
            ("use_sliding_window", False),
            ("qkv_bias", True),
            ("mlp_only_layers", ()),
            ("moe_intermediate_size", Count.N_FF),
            ("shared_expert_intermediate_size", Count.N_FF),
            ("output_router_logits", False),
            ("router_aux_loss_coef", 0.001),
        ),
        spellings=("qwen", "qwen2", "qwenmoe"),
        n_shared=(1,),
        biases=True,
    ),
)
QWEN3_MOE = Family(
    "Qwen3MoeForCausalLM",
    "qwen3_moe",
    QWEN3MOE,
    (
        *common_keys(Sizes(24, 2048, 6144, 32, 151936), n_ctx=32768, n_head_kv=4),
        *expert_keys(128, 8),
        Key("n_ff_expert", ("moe_intermediate_size",), 768),
        _NORM_TOPK,
    ),
    attention(HEAD_NORMS),
    router=(ROUTER,),
    experts=MLP_EXPERTS,
    fixed=_FIXED,
    mixture=Mixture(
        takes=("qwen3",),
        config=(
            ("num_experts", Count.EXPERTS),
            ("num_experts_per_tok", Count.USED),
            ("decoder_sparse_step", 1),
            ("norm_topk_prob", True),
            ("mlp_only_layers", ()),
            ("moe_intermediate_size", Count.N_FF),
            ("output_router_logits", False),
            ("router_aux_loss_coef", 0.001),
        ),
        spellings=("qwen3",),
    ),
)
