"""Granite's mixtures: Llama's attention, four multipliers, experts that are always stored fused."""

from dataclasses import replace

from gguf.constants import MODEL_TENSOR

from ..config_keys import Key, Sizes, common_keys, expert_keys
from ..family import Experts, Family, Single
from ..graphs import GRANITE_MOE as GRAPH
from .parts import LAYER, attention

_MOE = LAYER + "block_sparse_moe."
_GATE_UP = (_MOE + "input_linear.weight", _MOE + "experts.gate_up_proj")
_SHARED = LAYER + "shared_mlp."

GRANITE_MOE = Family(
    "GraniteMoeForCausalLM",
    "granitemoe",
    GRAPH,
    (
        *common_keys(Sizes(32, 4096, 11008, 32, 32000), n_ctx=2048),
        *expert_keys(8, 2),
        Key("attention_scale", ("attention_multiplier",), 1.0, "number"),
        Key("embedding_scale", ("embedding_multiplier",), 1.0, "number"),
        Key("residual_scale", ("residual_multiplier",), 1.0, "number"),
        Key("logit_scale", ("logits_scaling",), 1.0, "number"),
    ),
    attention(),
    router=(
        Single(
            MODEL_TENSOR.FFN_GATE_INP, (_MOE + "router.layer.weight", _MOE + "router.weight"), ("n_expert", "n_embd")
        ),
    ),
    experts=(
        Experts(MODEL_TENSOR.FFN_GATE_EXP, "", _GATE_UP, ("n_ff_exp", "n_embd"), (0, 2)),
        Experts(MODEL_TENSOR.FFN_UP_EXP, "", _GATE_UP, ("n_ff_exp", "n_embd"), (1, 2)),
        Experts(
            MODEL_TENSOR.FFN_DOWN_EXP,
            "",
            (_MOE + "output_linear.weight", _MOE + "experts.down_proj"),
            ("n_embd", "n_ff_exp"),
        ),
    ),
    # the softmax is over the chosen experts' scores alone
    renormalizing="always",
    states_head_dim="if odd",
)
GRANITE_MOE_SHARED = replace(
    GRANITE_MOE,
    hf_name="GraniteMoeSharedForCausalLM",
    model_type="granitemoeshared",
    keys=(*GRANITE_MOE.keys, Key("n_ff_shared", ("shared_intermediate_size",), 0, least=0)),
    shared=(
        Single(MODEL_TENSOR.FFN_GATE_SHEXP, (_SHARED + "input_linear.weight",), ("n_ff_shexp", "n_embd"), part=(0, 2)),
        Single(MODEL_TENSOR.FFN_UP_SHEXP, (_SHARED + "input_linear.weight",), ("n_ff_shexp", "n_embd"), part=(1, 2)),
        Single(MODEL_TENSOR.FFN_DOWN_SHEXP, (_SHARED + "output_linear.weight",), ("n_embd", "n_ff_shexp")),
    ),
)
