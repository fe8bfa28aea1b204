"""OLMoE: norms over all queries and all keys, and weights of the chosen experts as they are."""

from ..config_keys import SILU, WHOLE_HEADS, Fixed, Key, Sizes, common_keys, expert_keys
from ..family import Family
from ..graphs import OLMOE as GRAPH
from .parts import MLP_EXPERTS, ROUTER, WIDE_NORMS, attention

OLMOE = Family(
    "OlmoeForCausalLM",
    "olmoe",
    GRAPH,
    (
        *common_keys(Sizes(16, 2048, 2048, 16, 50304), n_ctx=4096, rms_norm_eps=1e-5),
        *expert_keys(64, 8),
        Key("norm_topk_prob", ("norm_topk_prob",), False, "flag"),
    ),
    attention(WIDE_NORMS),
    router=(ROUTER,),
    experts=MLP_EXPERTS,
    fixed=(SILU, WHOLE_HEADS, Fixed("clip_qkv", (None,), "llama.cpp's graph does not clip queries, keys and values")),
)
