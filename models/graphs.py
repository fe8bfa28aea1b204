"""llama.cpp's graphs, one record each: what they compute and load, and which metadata their files have.

Facts: src/models/*.cpp and llama_model_rope_type of llama.cpp, and the order of its conversion/*.py.
"""

from dataclasses import dataclass, replace
from typing import Literal

from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, Keys

from .model_config import FIELDS

Kind = Literal["uint32", "float32", "string"]


@dataclass(frozen=True)
class Row:
    """A metadata key of `gguf.Keys` ({arch}) with a field of ModelConfig; left out where the field is None or 0."""

    key: str
    field: str
    kind: Kind = "uint32"
    zero: bool = False

    def __post_init__(self) -> None:
        if "{arch}" not in self.key or self.field not in FIELDS:
            raise ValueError(f"a row of metadata with {self.key} and {self.field}: no such key or field")


@dataclass(frozen=True)
class Constant:
    """A metadata key whose value is the same for every model of the graph."""

    key: str
    value: float


@dataclass(frozen=True)
class Graph:
    """One of llama.cpp's graphs.

    `renormalizes`: the chosen experts' weights are divided by their sum (`norm_w` of build_moe_ffn; None: it has no
    experts). `interleaved`: the halves of each head are rotated in neighbouring pairs (LLAMA_ROPE_TYPE_NORM), so rows
    of q and k are permuted. `rope_factors`: it loads Llama 3's `rope_freqs`. `needs_output`: it does not load without
    `output.weight`. `one_width`: its feed-forward length is that of an expert. `rows` follow what every file has.
    """

    arch: MODEL_ARCH
    renormalizes: bool | None = None
    interleaved: bool = False
    rope_factors: bool = False
    needs_output: bool = False
    one_width: bool = False
    rows: tuple[Row | Constant, ...] = ()

    @property
    def name(self) -> str:
        """GGUF's name of the architecture."""
        return MODEL_ARCH_NAMES[self.arch]


_VOCAB_SIZE = Row(Keys.LLM.VOCAB_SIZE, "n_vocab")
_ROTATED = Row(Keys.Rope.DIMENSION_COUNT, "n_embd_head")
_N_FF_EXP = Row(Keys.LLM.EXPERT_FEED_FORWARD_LENGTH, "n_ff_expert")
_N_FF_SHEXP = Row(Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH, "n_ff_shared")

LLAMA = Graph(
    MODEL_ARCH.LLAMA,
    renormalizes=True,
    interleaved=True,
    rope_factors=True,
    one_width=True,
    rows=(_VOCAB_SIZE, _ROTATED),
)
QWEN2 = Graph(MODEL_ARCH.QWEN2)
QWEN3 = Graph(MODEL_ARCH.QWEN3)
QWEN2MOE = Graph(MODEL_ARCH.QWEN2MOE, renormalizes=False, needs_output=True, rows=(_N_FF_EXP, _N_FF_SHEXP))
QWEN3MOE = Graph(MODEL_ARCH.QWEN3MOE, renormalizes=True, rows=(_N_FF_EXP,))
DEEPSEEK = Graph(
    MODEL_ARCH.DEEPSEEK,
    renormalizes=False,
    interleaved=True,
    rows=(
        _ROTATED,
        Row(Keys.Rope.SCALING_TYPE, "rope_scaling_none", "string"),
        Row(Keys.LLM.LEADING_DENSE_BLOCK_COUNT, "n_layer_dense", zero=True),
        _VOCAB_SIZE,
        Row(Keys.LLM.EXPERT_FEED_FORWARD_LENGTH, "n_ff_exp"),
        Constant(Keys.LLM.EXPERT_WEIGHTS_SCALE, 1.0),
        Row(Keys.LLM.EXPERT_SHARED_COUNT, "n_expert_shared", zero=True),
    ),
)
OLMOE = Graph(MODEL_ARCH.OLMOE, renormalizes=False, needs_output=True)
GRANITE_MOE = Graph(
    MODEL_ARCH.GRANITE_MOE,
    renormalizes=True,
    interleaved=True,
    rope_factors=True,
    one_width=True,
    rows=(
        _VOCAB_SIZE,
        _ROTATED,
        Row(Keys.Attention.SCALE, "attention_scale", "float32"),
        Row(Keys.LLM.EMBEDDING_SCALE, "embedding_scale", "float32"),
        Row(Keys.LLM.RESIDUAL_SCALE, "residual_scale", "float32"),
        Row(Keys.LLM.LOGIT_SCALE, "logit_scale", "float32"),
        Row(Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH, "n_ff_shared"),
    ),
)
# The same graph with a logit scale of 1 and no other: llama's, plus shared experts that have no gate.
LLAMA_WITH_SHARED = replace(
    GRANITE_MOE,
    rows=(
        _VOCAB_SIZE,
        _ROTATED,
        Row(Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH, "n_ff_shexp"),
        Constant(Keys.LLM.LOGIT_SCALE, 1.0),
    ),
)

GRAPHS = {graph.name: graph for graph in (LLAMA, QWEN2, QWEN3, QWEN2MOE, QWEN3MOE, DEEPSEEK, OLMOE, GRANITE_MOE)}
# Graphs that assert one head size for keys, values and rotation, and one number of experts per token: ours, and more.
PLAIN = (*GRAPHS, "mistral3", "dbrx", "granite")


def runs_otherwise(architecture: str, asked: bool, n_expert: int, n_expert_used: int) -> bool:
    """Tell whether a graph of GGUF's `architecture` renormalizes although it is not asked to, or the other way round.

    With all experts chosen it makes no difference: their weights add up to one.
    """
    graph = GRAPHS.get(architecture)
    does = graph.renormalizes if graph else None
    return does is not None and does is not asked and n_expert_used < n_expert
