"""A model's hyper-parameters by llama.cpp's names, whatever config.json called them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelConfig:
    """Hyper-parameters; `head_dim`, `n_ff_expert` and `n_ff_shared` are None where they follow from the others.

    `head_dim_stated` tells whether GGUF states the width of a head; the scales are Granite's multipliers.
    """

    hf_architecture: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    n_ctx: int
    rms_norm_eps: float
    rope: Mapping[str, Any] = field(default_factory=dict[str, Any])
    head_dim: int | None = None
    head_dim_stated: bool = False
    tie_word_embeddings: bool = False
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_expert: int | None = None
    n_ff_shared: int | None = None
    n_expert_shared: int = 0
    n_layer_dense: int = 0
    norm_topk_prob: bool = False
    attention_scale: float | None = None
    embedding_scale: float | None = None
    residual_scale: float | None = None
    logit_scale: float | None = None

    @property
    def n_embd_head(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def stated_head_dim(self) -> int | None:
        """Width of a head where GGUF states it."""
        return self.n_embd_head if self.head_dim_stated else None

    @property
    def n_embd_q(self) -> int:
        """Width of all queries."""
        return self.n_head * self.n_embd_head

    @property
    def n_embd_kv(self) -> int:
        """Width of all keys, and of all values."""
        return self.n_head_kv * self.n_embd_head

    @property
    def n_ff_exp(self) -> int:
        """Width of an expert's hidden layer."""
        return self.n_ff_expert or self.n_ff

    @property
    def n_ff_shexp(self) -> int:
        """Width of all shared experts' hidden layers together; 0 where the config says that there are none."""
        return self.n_ff_exp * max(self.n_expert_shared, 1) if self.n_ff_shared is None else self.n_ff_shared

    @property
    def rope_type(self) -> str:
        """The kind of rotary scaling, in lower case; "default" without one."""
        return str(self.rope.get("rope_type") or "default").lower()

    @property
    def rope_scaling_none(self) -> str | None:
        """What states that there is no scaling, for graphs whose files say so; None where there is one."""
        return "none" if self.rope_type in ("default", "llama3", "dynamic") else None


FIELDS = frozenset(ModelConfig.__dataclass_fields__) | {
    name for name, value in vars(ModelConfig).items() if isinstance(value, property)
}
"""What a record may name of a model: every number above, read or derived."""
