"""Which tensors a family has, what they are called on both sides, and what is done to them.

Adding a family is one record here, one fixture in the tests, and one row in docs/convert.md.
"""

from dataclasses import dataclass, replace

from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSOR, TENSOR_NAMES


@dataclass(frozen=True)
class Experts:
    """One matrix of every expert of a layer, to be stacked.

    `classic` names it per expert ({layer}, {expert}); `fused` is the tensor that holds it for all experts,
    and `part` is which half of each expert's rows: 0 of 1, or 0 or 1 of 2.
    """

    tensor: MODEL_TENSOR
    classic: str
    fused: str
    part: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Single:
    """One tensor that is copied, with its rows permuted for RoPE where `heads` says whose ("q" or "k")."""

    tensor: MODEL_TENSOR
    hf_names: tuple[str, ...]
    suffix: str = ".weight"
    heads: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Architecture:
    """A family: its name on both sides and its tensors, those of a layer in the order in which they are written.

    `dense` replaces `experts` in layers without experts; `shared` are the shared expert's tensors; `needs_output`
    says that llama.cpp does not load the family without `output.weight`.
    """

    hf_name: str
    gguf: MODEL_ARCH
    attention: tuple[Single, ...]
    dense: tuple[Single, ...] = ()
    router: tuple[Single, ...] = ()
    experts: tuple[Experts, ...] = ()
    shared: tuple[Single, ...] = ()
    needs_output: bool = False

    @property
    def name(self) -> str:
        """GGUF's name of the architecture."""
        return MODEL_ARCH_NAMES[self.gguf]


def gguf_name(tensor: MODEL_TENSOR, suffix: str = ".weight", layer: int = 0) -> str:
    """Return the name of a tensor in GGUF."""
    return TENSOR_NAMES[tensor].format(bid=layer) + suffix


_LAYER = "model.layers.{layer}."

EMBEDDING = Single(MODEL_TENSOR.TOKEN_EMBD, ("model.embed_tokens.weight",))
OUTPUT_NORM = Single(MODEL_TENSOR.OUTPUT_NORM, ("model.norm.weight",))
OUTPUT = Single(MODEL_TENSOR.OUTPUT, ("lm_head.weight",), optional=True)
# For graphs that load no output from the embedding: a copy of it.
TIED_OUTPUT = replace(OUTPUT, hf_names=(*OUTPUT.hf_names, *EMBEDDING.hf_names))


def _attention(permuted: bool = True, head_norms: bool = False) -> tuple[Single, ...]:
    """Return norms and attention of a layer; biases and, where the family has them, norms of q and k."""
    rows: list[Single] = [Single(MODEL_TENSOR.ATTN_NORM, (_LAYER + "input_layernorm.weight",))]
    for tensor, letter, heads in (
        (MODEL_TENSOR.ATTN_Q, "q", "q"),
        (MODEL_TENSOR.ATTN_K, "k", "k"),
        (MODEL_TENSOR.ATTN_V, "v", ""),
        (MODEL_TENSOR.ATTN_OUT, "o", ""),
    ):
        name = _LAYER + f"self_attn.{letter}_proj"
        order = heads if permuted else ""
        rows.append(Single(tensor, (name + ".weight",), heads=order))
        rows.append(Single(tensor, (name + ".bias",), ".bias", order, optional=True))
    if head_norms:
        rows.append(Single(MODEL_TENSOR.ATTN_Q_NORM, (_LAYER + "self_attn.q_norm.weight",)))
        rows.append(Single(MODEL_TENSOR.ATTN_K_NORM, (_LAYER + "self_attn.k_norm.weight",)))
    rows.append(Single(MODEL_TENSOR.FFN_NORM, (_LAYER + "post_attention_layernorm.weight",)))
    return tuple(rows)


def _mlp(prefix: str, suffix: str = "") -> tuple[Single, ...]:
    """Return gate, up and down of a dense layer or of a shared expert (`suffix` "_SHEXP")."""
    return tuple(
        Single(MODEL_TENSOR[f"FFN_{part.upper()}{suffix}"], (_LAYER + f"{prefix}.{part}_proj.weight",))
        for part in ("gate", "up", "down")
    )


def _experts(prefix: str, gate: str, up: str, down: str) -> tuple[Experts, ...]:
    """Return the stacked matrices: per expert under `prefix` with their names, fused under mlp.experts."""
    fused = _LAYER + "mlp.experts."
    classic = _LAYER + prefix + ".experts.{expert}."
    return (
        Experts(MODEL_TENSOR.FFN_GATE_EXP, f"{classic}{gate}.weight", fused + "gate_up_proj", (0, 2)),
        Experts(MODEL_TENSOR.FFN_UP_EXP, f"{classic}{up}.weight", fused + "gate_up_proj", (1, 2)),
        Experts(MODEL_TENSOR.FFN_DOWN_EXP, f"{classic}{down}.weight", fused + "down_proj"),
    )


_ROUTER = Single(MODEL_TENSOR.FFN_GATE_INP, (_LAYER + "mlp.gate.weight", _LAYER + "block_sparse_moe.gate.weight"))
_QWEN_EXPERTS = _experts("mlp", "gate_proj", "up_proj", "down_proj")

ARCHITECTURES: dict[str, Architecture] = {
    architecture.hf_name: architecture
    for architecture in (
        Architecture(
            "MixtralForCausalLM",
            MODEL_ARCH.LLAMA,
            _attention(),
            router=(_ROUTER,),
            experts=_experts("block_sparse_moe", "w1", "w3", "w2"),
        ),
        Architecture("LlamaForCausalLM", MODEL_ARCH.LLAMA, _attention(), dense=_mlp("mlp")),
        Architecture("MistralForCausalLM", MODEL_ARCH.LLAMA, _attention(), dense=_mlp("mlp")),
        Architecture("Qwen2ForCausalLM", MODEL_ARCH.QWEN2, _attention(permuted=False), dense=_mlp("mlp")),
        Architecture(
            "Qwen3ForCausalLM", MODEL_ARCH.QWEN3, _attention(permuted=False, head_norms=True), dense=_mlp("mlp")
        ),
        Architecture(
            "Qwen2MoeForCausalLM",
            MODEL_ARCH.QWEN2MOE,
            _attention(permuted=False),
            router=(_ROUTER,),
            experts=_QWEN_EXPERTS,
            shared=(
                Single(MODEL_TENSOR.FFN_GATE_INP_SHEXP, (_LAYER + "mlp.shared_expert_gate.weight",)),
                *_mlp("mlp.shared_expert", "_SHEXP"),
            ),
            needs_output=True,
        ),
        Architecture(
            "Qwen3MoeForCausalLM",
            MODEL_ARCH.QWEN3MOE,
            _attention(permuted=False, head_norms=True),
            router=(_ROUTER,),
            experts=_QWEN_EXPERTS,
        ),
        Architecture(
            "DeepseekForCausalLM",
            MODEL_ARCH.DEEPSEEK,
            _attention(),
            dense=_mlp("mlp"),
            router=(_ROUTER,),
            experts=_QWEN_EXPERTS,
            shared=_mlp("mlp.shared_experts", "_SHEXP"),
        ),
    )
}


def with_llama_graph(architecture: Architecture) -> Architecture:
    """Return the family as GGUF's `llama`: no shared expert, q and k permuted (biases too)."""
    return replace(
        architecture,
        gguf=MODEL_ARCH.LLAMA,
        attention=_attention(permuted=True),
        shared=(),
        dense=(),
        needs_output=False,
    )


def with_granite_graph(architecture: Architecture) -> Architecture:
    """Return a family with llama's attention as GGUF's `granitemoe`: shared experts without a gate, no dense layers.

    With a logit scale of 1 and no other scale it is llama's graph plus shared experts (src/models/granite.cpp).
    """
    return replace(architecture, gguf=MODEL_ARCH.GRANITE_MOE, dense=())
