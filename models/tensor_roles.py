"""What a tensor does in a model, told from its GGUF name: its part, its role, its layer, and whether it is quantized.

Parts are for people (experts, attention, ...). Roles and exceptions are those of llama.cpp's quantizer
(src/llama-quant.cpp), which goes by pieces of names: to it a router is a kind of gate.
"""

import re
from enum import Enum, StrEnum

from ..formats.errors import PlanError
from .tensor_types import Shaped


class Role(Enum):
    """The roles that mixes tell apart; everything else is OTHER and takes the file type's base type."""

    TOKEN_EMBD = "token embeddings"
    OUTPUT = "output"
    ATTN_Q = "attention query"
    ATTN_K = "attention key"
    ATTN_V = "attention value"
    ATTN_OUTPUT = "attention output"
    FFN_GATE = "feed-forward gate"
    FFN_UP = "feed-forward up"
    FFN_DOWN = "feed-forward down"
    OTHER = "other"


class Part(StrEnum):
    """The parts of a model that people tell apart: what a tensor is for."""

    EXPERTS = "experts"
    SHARED_EXPERTS = "shared experts"
    ROUTER = "router"
    ATTENTION = "attention"
    FEED_FORWARD = "feed-forward"
    EMBEDDINGS = "embeddings"
    NORMS = "norms"
    OTHER = "other"


# The first pattern that fits a GGUF tensor's name gives its part (names: gguf.constants.TENSOR_NAMES).
PARTS: tuple[tuple[re.Pattern[str], Part], ...] = (
    (re.compile(r"norm(\.|$|_\d)"), Part.NORMS),
    (re.compile(r"^blk\.\d+\.(ffn_gate_inp|ffn_gate_inp_shexp|exp_probs_b|ffn_exp_probs)\b"), Part.ROUTER),
    (re.compile(r"^blk\.\d+\.ffn_\w+_(shexp|chexp)\b"), Part.SHARED_EXPERTS),
    (re.compile(r"^blk\.\d+\.ffn_\w+_exps\b"), Part.EXPERTS),
    (re.compile(r"^blk\.\d+\.ffn_(gate|up|down)\.\d+\."), Part.EXPERTS),
    (re.compile(r"^blk\.\d+\.ffn_"), Part.FEED_FORWARD),
    (re.compile(r"^blk\.\d+\.attn_"), Part.ATTENTION),
    (re.compile(r"^(token_embd|output|position_embd|token_types)\b"), Part.EMBEDDINGS),
)

_EXACT_NAMES = {
    "output.weight": Role.OUTPUT,
    "token_embd.weight": Role.TOKEN_EMBD,
    "per_layer_token_embd.weight": Role.TOKEN_EMBD,
}

# Parts of names, the first match decides; fused qkv and DeepSeek's kv_b carry the values, so they count as such.
_NAME_PARTS = (
    ("attn_qkv.weight", Role.ATTN_V),
    ("attn_kv_b.weight", Role.ATTN_V),
    ("attn_v.weight", Role.ATTN_V),
    ("attn_k.weight", Role.ATTN_K),
    ("attn_q.weight", Role.ATTN_Q),
    ("attn_output.weight", Role.ATTN_OUTPUT),
    ("ffn_up", Role.FFN_UP),
    ("ffn_gate", Role.FFN_GATE),
    ("ffn_down", Role.FFN_DOWN),
)

# Why tensors of more than one dimension keep their type, and the parts of names that tell.
_KEPT_PARTS = (
    ("norm", ("_norm.weight",)),
    ("router", ("ffn_gate_inp.weight", "ffn_gate_tid2eid.weight")),
    ("small", ("altup", "laurel", "per_layer_model_proj")),
    ("convolution", ("ssm_conv1d", "shortconv.conv.weight")),
    ("indexer", ("indexer.k_proj.weight", "indexer.q_proj.weight")),
    ("time mix", tuple(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2"))),
    ("time mix", tuple(f"time_mix_{part}.weight" for part in ("a0", "a1", "a2", "g1", "g2"))),
    ("time mix", tuple(f"time_mix_{part}.weight" for part in ("decay_w1", "decay_w2", "lerp_fused"))),
    ("position", ("attn_rel_b.weight", ".position_embd", "sam.pos_embd", ".rel_pos")),
    ("vision", ("sam.neck.", "sam.net_", ".patch_embd", ".patch_merger")),
    ("codebook", ("a.rvq.codebook", "mm.a.code_embd")),
)

_KEPT_NAMES = {"position_embd.weight": "position", "token_types.weight": "token types"}

_KEPT_IN_GLM5_NEXT = (
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "ssm_beta.weight",
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
)


def part_of(name: str) -> Part:
    """Tell which part of a model a tensor belongs to from its GGUF name."""
    return next((part for pattern, part in PARTS if pattern.search(name)), Part.OTHER)


def role_of(name: str) -> Role:
    """Tell a tensor's role from its GGUF name."""
    if name in _EXACT_NAMES:
        return _EXACT_NAMES[name]
    return next((role for part, role in _NAME_PARTS if part in name), Role.OTHER)


def layer_of(name: str) -> int | None:
    """Return the layer number of a tensor called blk.N.…, None outside the layers."""
    match = re.match(r"blk\.\s*([+-]?\d+)", name)
    return int(match[1]) if match else None


def layer_in(name: str, n_layer: int) -> int:
    """Return the layer number of a tensor that must be in one of the model's layers; PlanError otherwise."""
    i_layer = layer_of(name)
    if i_layer is None:
        raise PlanError(f"tensor {name} is in no layer, so the mix has no type for it; give one by --tensor-type")
    if not 0 <= i_layer < n_layer:
        raise PlanError(f"tensor {name} is in layer {i_layer}, but the model has {n_layer} layers")
    return i_layer


def reason_to_keep(tensor: Shaped, architecture: str) -> str | None:
    """Tell why a tensor keeps its type whatever the file type is; None when it is quantized."""
    n_dims = max((i + 1 for i, n in enumerate(tensor.shape) if n > 1), default=1)
    if n_dims < 2:
        return "not a matrix"
    name = tensor.name
    if not name.endswith("weight"):
        return "not a weight"
    if name in _KEPT_NAMES:
        return _KEPT_NAMES[name]
    if architecture == "glm5-next" and any(part in name for part in _KEPT_IN_GLM5_NEXT):
        return "small"
    return next((why for why, parts in _KEPT_PARTS if any(part in name for part in parts)), None)
