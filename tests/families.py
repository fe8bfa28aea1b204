"""What tiny checkpoints of other families than Mixtral have instead: names and shapes of tensors, keys of config.json.

In: a Tiny whose `layout` names the family; out: its own part of a layer, drawn as every tensor is, and its keys.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoints import Tiny

Shapes = dict[str, tuple[int, ...]]


def _olmoe(tiny: "Tiny") -> Shapes:
    shapes: Shapes = {
        "self_attn.q_norm.weight": (tiny.n_head * tiny.n_rot,),
        "self_attn.k_norm.weight": (tiny.n_head_kv * tiny.n_rot,),
        "mlp.gate.weight": (tiny.n_expert, tiny.n_embd),
    }
    for expert in range(tiny.n_expert):
        for part in ("gate_proj", "up_proj"):
            shapes[f"mlp.experts.{expert}.{part}.weight"] = (tiny.n_ff, tiny.n_embd)
        shapes[f"mlp.experts.{expert}.down_proj.weight"] = (tiny.n_embd, tiny.n_ff)
    return shapes


def _granite(tiny: "Tiny") -> Shapes:
    return {
        "block_sparse_moe.router.layer.weight": (tiny.n_expert, tiny.n_embd),
        "block_sparse_moe.input_linear.weight": (tiny.n_expert, 2 * tiny.n_ff, tiny.n_embd),
        "block_sparse_moe.output_linear.weight": (tiny.n_expert, tiny.n_embd, tiny.n_ff),
    }


def _granite_shared(tiny: "Tiny") -> Shapes:
    width = tiny.n_ff // 2
    return _granite(tiny) | {
        "shared_mlp.input_linear.weight": (2 * width, tiny.n_embd),
        "shared_mlp.output_linear.weight": (tiny.n_embd, width),
    }


def _granite_keys(tiny: "Tiny") -> dict[str, Any]:
    return {
        "num_local_experts": tiny.n_expert,
        "attention_bias": False,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
    }


LAYERS = {"olmoe": _olmoe, "granitemoe": _granite, "granitemoeshared": _granite_shared}
ARCHITECTURES = {
    "olmoe": "OlmoeForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoeshared": "GraniteMoeSharedForCausalLM",
}


def family_keys(tiny: "Tiny") -> dict[str, Any]:
    """Return the keys of config.json that the family has of its own."""
    common = {
        "architectures": [ARCHITECTURES[tiny.layout]],
        "model_type": tiny.layout,
        "num_experts_per_tok": tiny.n_expert_used,
    }
    if tiny.layout == "olmoe":
        own = {"num_experts": tiny.n_expert, "norm_topk_prob": False, "clip_qkv": None, "attention_bias": False}
        return common | own
    shared = {"shared_intermediate_size": tiny.n_ff // 2} if tiny.layout == "granitemoeshared" else {}
    return common | _granite_keys(tiny) | shared
