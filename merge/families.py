"""The kinds of mixture a merge can become: which dense models each takes, its tensor names and its config.json.

Names and keys are those that mergekit 0.1.5 (moe/mixtral.py, qwen.py, qwen3.py, deepseek.py) and transformers write.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..formats.errors import RecipeError

PARTS = ("gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
ATTENTION = tuple(f"self_attn.{part}_proj.weight" for part in "qkvo")
ATTENTION_BIAS = tuple(f"self_attn.{part}_proj.bias" for part in "qkv")
QK_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")

# What transformers assumes when a dense config.json does not say; its mixtures assume other things, so it is written.
DENSE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "mistral": {"rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "num_key_value_heads": 8},
    "qwen2": {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}


@dataclass(frozen=True)
class Layout:
    """Names within `model.layers.N.`: `experts` maps each MLP part to a name with {expert}, or fuses them.

    A fused layout has `gate_up` [n_expert, 2 * n_ff, n_embd] (gate first) and `down` [n_expert, n_embd, n_ff].
    """

    router: str
    experts: Mapping[str, str] | None = None
    gate_up: str = ""
    down: str = ""


@dataclass(frozen=True)
class Family:
    """One kind of mixture. `biases_wanted` are attention biases that it cannot do without: zeros where none are."""

    name: str
    takes: tuple[str, ...]
    layer_tensors: tuple[str, ...]
    classic: Layout
    fused: Layout | None
    config: Callable[[Mapping[str, Any], int, int, int], dict[str, Any]]
    n_shared: tuple[int, ...] = (0,)
    shared_expert: str = ""
    shared_gate: str = ""
    biases_wanted: tuple[str, ...] = ()


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dense config.json with what transformers assumes for its model type written out."""
    defaults = dict(DENSE_DEFAULTS.get(config.get("model_type", ""), {}))
    if "rope_theta" not in config and "rope_theta" not in (config.get("rope_parameters") or {}):
        defaults["rope_theta"] = 10000.0
    full = {**defaults, **{key: value for key, value in config.items() if value is not None or key not in defaults}}
    full.setdefault("tie_word_embeddings", False)
    if full.get("num_key_value_heads") is None:
        full["num_key_value_heads"] = full["num_attention_heads"]
    if full.get("head_dim") is None and config.get("model_type") in ("llama", "mistral"):
        full["head_dim"] = full["hidden_size"] // full["num_attention_heads"]
    return full


def _mixtral(base: Mapping[str, Any], n_expert: int, n_used: int, n_shared: int) -> dict[str, Any]:
    return {
        **base,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": n_expert,
        "num_experts_per_tok": n_used,
        "sliding_window": None,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


def _qwen2_moe(base: Mapping[str, Any], n_expert: int, n_used: int, n_shared: int) -> dict[str, Any]:
    return {
        **base,
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "num_experts": n_expert,
        "num_experts_per_tok": n_used,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
        "sliding_window": None,
        "use_sliding_window": False,
        "qkv_bias": True,
        "mlp_only_layers": [],
        "moe_intermediate_size": base["intermediate_size"],
        "shared_expert_intermediate_size": base["intermediate_size"],
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


def _qwen3_moe(base: Mapping[str, Any], n_expert: int, n_used: int, n_shared: int) -> dict[str, Any]:
    return {
        **base,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": n_expert,
        "num_experts_per_tok": n_used,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
        "mlp_only_layers": [],
        "moe_intermediate_size": base["intermediate_size"],
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


def _deepseek(base: Mapping[str, Any], n_expert: int, n_used: int, n_shared: int) -> dict[str, Any]:
    code = "deepseek-ai/deepseek-moe-16b-base--"
    return {
        **base,
        "architectures": ["DeepseekForCausalLM"],
        "model_type": "deepseek",
        "n_routed_experts": n_expert,
        "n_shared_experts": n_shared or None,
        "num_experts_per_tok": n_used,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "norm_topk_prob": True,
        "moe_intermediate_size": base["intermediate_size"],
        "auto_map": {
            "AutoConfig": f"{code}configuration_deepseek.DeepseekConfig",
            "AutoModel": f"{code}modeling_deepseek.DeepseekModel",
            "AutoModelForCausalLM": f"{code}modeling_deepseek.DeepseekForCausalLM",
        },
    }


MIXTRAL_PARTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
MLP_LAYOUT = Layout("mlp.gate.weight", {part: f"mlp.experts.{{expert}}.{part}.weight" for part in PARTS})
FUSED_LAYOUT = Layout("mlp.gate.weight", None, "mlp.experts.gate_up_proj", "mlp.experts.down_proj")

FAMILIES = (
    Family(
        name="mixtral",
        takes=("llama", "mistral"),
        layer_tensors=(*NORMS, *ATTENTION),
        classic=Layout(
            "block_sparse_moe.gate.weight",
            {part: f"block_sparse_moe.experts.{{expert}}.{w}.weight" for part, w in MIXTRAL_PARTS.items()},
        ),
        fused=FUSED_LAYOUT,
        config=_mixtral,
    ),
    Family(
        name="deepseek",
        takes=("llama", "mistral"),
        layer_tensors=(*NORMS, *ATTENTION),
        classic=MLP_LAYOUT,
        fused=None,
        config=_deepseek,
        n_shared=(0, 1),
        shared_expert="mlp.shared_experts.{part}.weight",
    ),
    Family(
        name="qwen2_moe",
        takes=("llama", "mistral", "qwen2"),
        layer_tensors=(*NORMS, *ATTENTION, *ATTENTION_BIAS),
        classic=MLP_LAYOUT,
        fused=FUSED_LAYOUT,
        config=_qwen2_moe,
        n_shared=(1,),
        shared_expert="mlp.shared_expert.{part}.weight",
        shared_gate="mlp.shared_expert_gate.weight",
        biases_wanted=ATTENTION_BIAS,
    ),
    Family(
        name="qwen3_moe",
        takes=("qwen3",),
        layer_tensors=(*NORMS, *ATTENTION, *QK_NORMS),
        classic=MLP_LAYOUT,
        fused=FUSED_LAYOUT,
        config=_qwen3_moe,
    ),
)
# As mergekit spells its architectures, and as config.json spells its model types.
SPELLINGS = {"mixtral": "mixtral", "deepseekmoe": "deepseek", "qwen2moe": "qwen2_moe", "qwenmoe": "qwen2_moe"}
SPELLINGS |= {"deepseek": "deepseek", "qwen": "qwen2_moe", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe"}
SPELLINGS |= {"qwen3moe": "qwen3_moe"}


def choose_family(model_types: Sequence[str], n_shared: int, architecture: str | None, where: str) -> Family:
    """Return the family that takes these dense model types; Mixtral where several do, as mergekit chooses.

    `architecture` is the recipe's wish. Raises RecipeError when the models differ in type or nothing takes them.
    """
    if len(set(model_types)) > 1:
        raise RecipeError(
            f"{where}: base and experts are of different architectures ({', '.join(sorted(set(model_types)))}); "
            "a mixture needs one"
        )
    model_type = model_types[0]
    candidates = [family for family in FAMILIES if model_type in family.takes]
    if not candidates:
        known = ", ".join(sorted({one for family in FAMILIES for one in family.takes}))
        raise RecipeError(f"{where}: no mixture can be made of {model_type} models; known are {known}")
    if architecture is not None:
        wanted = SPELLINGS.get("".join(architecture.lower().split()).replace("-", "").replace("_", ""))
        candidates = [family for family in candidates if family.name == wanted]
        if not candidates:
            known = ", ".join(family.name for family in FAMILIES if model_type in family.takes)
            raise RecipeError(
                f"{where}: architecture {architecture!r} cannot be made of {model_type} models; try {known}"
            )
    fitting = [family for family in candidates if n_shared in family.n_shared]
    if not fitting:
        needs = "; ".join(f"{f.name} takes {' or '.join(map(str, f.n_shared))}" for f in candidates)
        raise RecipeError(f"{where}: {n_shared} shared experts do not fit: {needs}")
    return fitting[0]
