"""Tensors that many families share, and how they are called: what the records of families are put together from."""

from dataclasses import replace

from gguf.constants import MODEL_TENSOR

from ..family import Experts, Heads, Single

LAYER = "model.layers.{layer}."

EMBEDDING = Single(MODEL_TENSOR.TOKEN_EMBD, ("model.embed_tokens.weight",), ("n_vocab", "n_embd"))
OUTPUT_NORM = Single(MODEL_TENSOR.OUTPUT_NORM, ("model.norm.weight",), ("n_embd",))
OUTPUT = Single(MODEL_TENSOR.OUTPUT, ("lm_head.weight",), ("n_vocab", "n_embd"), optional=True)
# For graphs that load no output from the embedding: a copy of it.
TIED_OUTPUT = replace(OUTPUT, hf_names=(*OUTPUT.hf_names, *EMBEDDING.hf_names))

ROUTER = Single(
    MODEL_TENSOR.FFN_GATE_INP,
    (LAYER + "mlp.gate.weight", LAYER + "block_sparse_moe.gate.weight"),
    ("n_expert", "n_embd"),
)
HEAD_NORMS = ("n_embd_head", "n_embd_head")
WIDE_NORMS = ("n_embd_q", "n_embd_kv")


def attention(norms: tuple[str, str] | None = None) -> tuple[Single, ...]:
    """Return norms and attention of a layer, biases where there are any; `norms` are the widths of those of q and k."""
    rows: list[Single] = [Single(MODEL_TENSOR.ATTN_NORM, (LAYER + "input_layernorm.weight",), ("n_embd",))]
    projections: tuple[tuple[MODEL_TENSOR, str, Heads, str, str], ...] = (
        (MODEL_TENSOR.ATTN_Q, "q", "q", "n_embd_q", "n_embd"),
        (MODEL_TENSOR.ATTN_K, "k", "k", "n_embd_kv", "n_embd"),
        (MODEL_TENSOR.ATTN_V, "v", "", "n_embd_kv", "n_embd"),
        (MODEL_TENSOR.ATTN_OUT, "o", "", "n_embd", "n_embd_q"),
    )
    for tensor, letter, heads, n_rows, row_length in projections:
        name = LAYER + f"self_attn.{letter}_proj"
        rows.append(Single(tensor, (name + ".weight",), (n_rows, row_length), heads=heads))
        rows.append(Single(tensor, (name + ".bias",), (n_rows,), ".bias", heads, optional=True))
    if norms:
        rows.append(Single(MODEL_TENSOR.ATTN_Q_NORM, (LAYER + "self_attn.q_norm.weight",), norms[:1]))
        rows.append(Single(MODEL_TENSOR.ATTN_K_NORM, (LAYER + "self_attn.k_norm.weight",), norms[1:]))
    rows.append(Single(MODEL_TENSOR.FFN_NORM, (LAYER + "post_attention_layernorm.weight",), ("n_embd",)))
    return tuple(rows)


def mlp(prefix: str, suffix: str = "", width: str = "n_ff") -> tuple[Single, ...]:
    """Return gate, up and down of a dense layer or of a shared expert (`suffix` "_SHEXP")."""
    shapes = {"gate": (width, "n_embd"), "up": (width, "n_embd"), "down": ("n_embd", width)}
    return tuple(
        Single(MODEL_TENSOR[f"FFN_{part.upper()}{suffix}"], (LAYER + f"{prefix}.{part}_proj.weight",), shape)
        for part, shape in shapes.items()
    )


def experts(
    prefix: str, gate: str, up: str, down: str, fused: tuple[str, ...] = ("mlp.experts.",)
) -> tuple[Experts, ...]:
    """Return the stacked matrices: per expert under `prefix` with their names, fused as transformers fuses them."""
    classic = LAYER + prefix + ".experts.{expert}."
    gate_up = tuple(LAYER + one + "gate_up_proj" for one in fused)
    downs = tuple(LAYER + one + "down_proj" for one in fused)
    wide, narrow = ("n_ff_exp", "n_embd"), ("n_embd", "n_ff_exp")
    return (
        Experts(MODEL_TENSOR.FFN_GATE_EXP, f"{classic}{gate}.weight", gate_up, wide, (0, 2)),
        Experts(MODEL_TENSOR.FFN_UP_EXP, f"{classic}{up}.weight", gate_up, wide, (1, 2)),
        Experts(MODEL_TENSOR.FFN_DOWN_EXP, f"{classic}{down}.weight", downs, narrow),
    )


MLP_EXPERTS = experts("mlp", "gate_proj", "up_proj", "down_proj")
