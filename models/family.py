"""A family of models as one frozen record: tensors, keys of config.json, llama.cpp's graph, how mergekit makes it.

docs/new-family.md tells how to add one. A record that cannot be right raises ValueError when it is made.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from gguf.constants import MODEL_TENSOR, MODEL_TENSORS, TENSOR_NAMES

from .config_keys import SILU, WHOLE_HEADS, Fixed, Key
from .graphs import Graph
from .model_config import FIELDS, ModelConfig

Dimension = str | int
Heads = Literal["", "q", "k"]
REQUIRED_FIELDS = {"n_layer", "n_embd", "n_ff", "n_head", "n_head_kv", "n_vocab", "n_ctx", "rms_norm_eps"}


@dataclass(frozen=True)
class Single:
    """One tensor that is copied. `shape` names fields of ModelConfig in numpy's order.

    `heads` says that its rows belong to heads of queries ("q") or keys ("k"), which some graphs want permuted; `part`
    which share of the rows it is, where another tensor has the rest: 0 or 1 of 2.
    """

    tensor: MODEL_TENSOR
    hf_names: tuple[str, ...]
    shape: tuple[Dimension, ...]
    suffix: str = ".weight"
    heads: Heads = ""
    optional: bool = False
    part: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        _check_tensor(self.tensor, self.hf_names, self.shape, self.part, ())


@dataclass(frozen=True)
class Experts:
    """One matrix of every expert of a layer, to be stacked.

    `classic` names it per expert ({layer}, {expert}), or is empty; `fused` are names of the tensor that holds it for
    all experts, and `part` is which share of each expert's rows: 0 of 1, or 0 or 1 of 2. `shape` is one expert's.
    """

    tensor: MODEL_TENSOR
    classic: str
    fused: tuple[str, ...]
    shape: tuple[Dimension, Dimension]
    part: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        names = (self.classic, *self.fused) if self.classic else self.fused
        _check_tensor(self.tensor, names, self.shape, self.part, ("{expert}",) if self.classic else ())


@dataclass(frozen=True)
class Instead:
    """Another graph, which computes a family where its own does not: never with leading dense layers.

    Taken for checkpoints with a shared expert or without one (`shared`), and if `renormalizing`, only for those that
    divide the chosen experts' weights by their sum.
    """

    graph: Graph
    shared: bool
    renormalizing: bool = False


class Count(Enum):
    """A number that a mixture's config.json takes from its recipe or its base."""

    EXPERTS = "experts"
    USED = "experts per token"
    SHARED = "shared experts, null for none"
    N_FF = "the base's intermediate_size"


@dataclass(frozen=True)
class Mixture:
    """How mergekit makes this family of dense models (0.1.5: moe/mixtral.py, qwen.py, qwen3.py, deepseek.py).

    `takes` are model types of dense models; `spellings` further names of its own; `n_shared` how many shared experts
    it can have; `config` the keys that its config.json has beside the base's, in order; `biases` of attention are
    zeros where the base has none.
    """

    takes: tuple[str, ...]
    config: tuple[tuple[str, Any], ...]
    spellings: tuple[str, ...] = ()
    n_shared: tuple[int, ...] = (0,)
    fused: bool = True
    biases: bool = False


Renormalizing = Literal["always", "norm_topk_prob", "norm_topk_prob, of several"]


@dataclass(frozen=True)
class Family:
    """A family: its names, its keys, its graph and its tensors, those of a layer in the order of the file.

    `dense` replaces `experts` in layers without experts; `shared` are the shared expert's tensors. `renormalizing`
    says when a checkpoint divides the chosen experts' weights by their sum; `states_head_dim` when GGUF has the width
    of a head: where config.json has it, always (transformers fills it in), or where it is not n_embd / n_head.
    """

    hf_name: str
    model_type: str
    graph: Graph
    keys: tuple[Key, ...]
    attention: tuple[Single, ...]
    dense: tuple[Single, ...] = ()
    router: tuple[Single, ...] = ()
    experts: tuple[Experts, ...] = ()
    shared: tuple[Single, ...] = ()
    instead: tuple[Instead, ...] = ()
    fixed: tuple[Fixed, ...] = (SILU, WHOLE_HEADS)
    renormalizing: Renormalizing = "norm_topk_prob"
    states_head_dim: Literal["if stated", "always", "if odd"] = "if stated"
    mixture: Mixture | None = None

    def __post_init__(self) -> None:
        read = [key.field for key in self.keys]
        wanted = REQUIRED_FIELDS | ({"n_expert", "n_expert_used"} if self.experts else set[str]())
        if len(set(read)) < len(read) or wanted - set(read):
            raise ValueError(f"{self.hf_name}: each of {sorted(wanted)} needs one key of config.json")
        if bool(self.router) != bool(self.experts) or not (self.dense or self.experts):
            raise ValueError(f"{self.hf_name}: a mixture has a router and experts, a dense model dense tensors")
        if self.experts and self.graph.renormalizes is None:
            raise ValueError(f"{self.hf_name}: llama.cpp's {self.graph.name} graph has no experts")
        layer = (*self.attention, *self.dense, *self.router, *self.experts, *self.shared)
        outputs = [(one.tensor, getattr(one, "suffix", "")) for one in layer]
        if len(set(outputs)) < len(outputs):
            raise ValueError(f"{self.hf_name}: one tensor of GGUF is made twice")
        unknown = [one.tensor.name for one in layer if one.tensor not in MODEL_TENSORS[self.graph.arch]]
        if unknown:
            raise ValueError(f"{self.hf_name}: llama.cpp's {self.graph.name} has no {unknown[0]}")

    @property
    def name(self) -> str:
        """GGUF's name of the architecture."""
        return self.graph.name

    def key(self, field: str) -> Key:
        """Return the key that a field of ModelConfig is read from."""
        return next(key for key in self.keys if key.field == field)


# Keys that a derived number follows from; the first of an expert's widths that the family has.
_DERIVED = {
    "n_embd_q": ("n_head", "head_dim"),
    "n_embd_kv": ("n_head_kv", "head_dim"),
    "n_embd_head": ("head_dim",),
    "n_ff_exp": ("n_ff_expert", "n_ff"),
    "n_ff_shexp": ("n_ff_shared", "n_expert_shared", "n_ff_expert"),
}


def keys_behind(family: Family, shape: Iterable[Dimension]) -> str:
    """Return the keys of config.json that a shape comes from, for messages."""
    names = {key.field: key.names[0] for key in family.keys}
    found: dict[str, None] = {}
    for field in (one for one in shape if isinstance(one, str)):
        known = [names[one] for one in _DERIVED.get(field, (field,)) if one in names]
        found |= dict.fromkeys(known[:1] if field in ("n_ff_exp", "n_embd_head") else known)
    return ", ".join(found)


def gguf_name(tensor: MODEL_TENSOR, suffix: str = ".weight", layer: int = 0) -> str:
    """Return the name of a tensor in GGUF."""
    return TENSOR_NAMES[tensor].format(bid=layer) + suffix


def shape_of(shape: Iterable[Dimension], config: ModelConfig) -> tuple[int, ...]:
    """Return a shape in numbers."""
    return tuple(one if isinstance(one, int) else getattr(config, one) for one in shape)


def by_name(families: Iterable[Family]) -> Mapping[str, Family]:
    """Return families by what config.json calls them; ValueError when two share a name."""
    known: dict[str, Family] = {}
    for family in families:
        if family.hf_name in known:
            raise ValueError(f"{family.hf_name} is there twice")
        known[family.hf_name] = family
    return known


def _check_tensor(
    tensor: MODEL_TENSOR,
    names: tuple[str, ...],
    shape: tuple[Dimension, ...],
    part: tuple[int, int],
    only_first: tuple[str, ...],
) -> None:
    """Refuse names without the layer's number, dimensions that no model has, and parts that cannot be."""
    per_layer = "{bid}" in TENSOR_NAMES[tensor]
    if not names or any(("{layer}" in name) != per_layer for name in names):
        raise ValueError(f"{tensor.name}: names {names} must have {{layer}} where GGUF's have a layer's number")
    if any(each not in names[0] for each in only_first):
        raise ValueError(f"{tensor.name}: {names[0]} must have {', '.join(only_first)}")
    if not shape or any(isinstance(one, str) and one not in FIELDS for one in shape):
        raise ValueError(f"{tensor.name}: {shape} is not made of fields of ModelConfig")
    if not 0 <= part[0] < part[1] <= 2:
        raise ValueError(f"{tensor.name}: {part} is no part")
