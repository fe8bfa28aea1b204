"""DeepSeek-MoE of the first kind; its defaults are those of configuration_deepseek.py in its repositories."""

from ..config_keys import REFUSED, SILU, WHOLE_HEADS, Fixed, Key, Sizes, common_keys, expert_keys
from ..family import Count, Family, Instead, Mixture
from ..graphs import DEEPSEEK as GRAPH
from ..graphs import LLAMA, LLAMA_WITH_SHARED
from .parts import MLP_EXPERTS, ROUTER, attention, mlp

_CODE = "deepseek-ai/deepseek-moe-16b-base--"

DEEPSEEK = Family(
    "DeepseekForCausalLM",
    "deepseek",
    GRAPH,
    (
        *common_keys(Sizes(30, 4096, 11008, 32, 102400), n_ctx=2048, n_head_kv=32),
        *expert_keys(REFUSED, REFUSED),
        Key("n_ff_expert", ("moe_intermediate_size",), 1407),
        Key("n_expert_shared", ("n_shared_experts",), 0, least=0),
        Key("n_layer_dense", ("first_k_dense_replace",), 0, least=0),
        Key("norm_topk_prob", ("norm_topk_prob",), False, "flag"),
    ),
    attention(),
    dense=mlp("mlp"),
    router=(ROUTER,),
    experts=MLP_EXPERTS,
    shared=mlp("mlp.shared_experts", "_SHEXP", "n_ff_shexp"),
    instead=(Instead(LLAMA, shared=False), Instead(LLAMA_WITH_SHARED, shared=True, renormalizing=True)),
    fixed=(
        SILU,
        WHOLE_HEADS,
        Fixed("moe_layer_freq", (1,), "llama.cpp's graph has experts in every layer after the leading dense ones"),
        Fixed("scoring_func", ("softmax",), "llama.cpp's graph takes the softmax of the router's scores"),
    ),
    # MoEGate leaves the weight of a single chosen expert as it is
    renormalizing="norm_topk_prob, of several",
    mixture=Mixture(
        takes=("llama", "mistral"),
        config=(
            ("n_routed_experts", Count.EXPERTS),
            ("n_shared_experts", Count.SHARED),
            ("num_experts_per_tok", Count.USED),
            ("first_k_dense_replace", 0),
            ("moe_layer_freq", 1),
            ("scoring_func", "softmax"),
            ("norm_topk_prob", True),
            ("moe_intermediate_size", Count.N_FF),
            (
                "auto_map",
                (
                    ("AutoConfig", f"{_CODE}configuration_deepseek.DeepseekConfig"),
                    ("AutoModel", f"{_CODE}modeling_deepseek.DeepseekModel"),
                    ("AutoModelForCausalLM", f"{_CODE}modeling_deepseek.DeepseekForCausalLM"),
                ),
            ),
        ),
        spellings=("deepseekmoe",),
        n_shared=(0, 1),
        fused=False,
    ),
)
