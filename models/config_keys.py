"""Keys of a config.json: what each means, what it is when it is not there, and values that llama.cpp cannot compute."""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from .model_config import FIELDS


class Missing(Enum):
    """What a key without a default has in its place."""

    REFUSED = "refused"


REFUSED = Missing.REFUSED
Kind = Literal["count", "number", "flag"]


@dataclass(frozen=True)
class Key:
    """A key that becomes a field of ModelConfig; the first of `names` is the one that transformers writes.

    `default` is what the family's config class takes when the key is not there (configuration_*.py); REFUSED where
    it has none, or where one would be a guess. `nested` is the default of a text model within a multimodal config,
    which transformers once wrote as differences to the class. `null_derives`: null is not "not there", but follows
    from other keys. `least` bounds a count.
    """

    field: str
    names: tuple[str, ...]
    default: float | bool | Missing | None = REFUSED
    kind: Kind = "count"
    least: int = 1
    nested: int | None = None
    null_derives: bool = False

    def __post_init__(self) -> None:
        if not self.names or self.field not in FIELDS | {"rope_theta"}:
            raise ValueError(f"a key of config.json for {self.field}: no such field, or no name")
        if self.kind == "flag" and not isinstance(self.default, bool):
            raise ValueError(f"{self.names[0]} is true or false, so it has a default")


@dataclass(frozen=True)
class Fixed:
    """A key that must have one of `values` (the first where it is not there), because llama.cpp computes no other."""

    name: str
    values: tuple[Any, ...]
    why: str

    def allows(self, value: Any) -> bool:
        """Tell whether a value is one of them; null is the default."""
        return value is None or any(type(value) is type(one) and value == one for one in self.values)


@dataclass(frozen=True)
class Sizes:
    """What a family's config class takes for the shapes of a model that does not state them."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_vocab: int


def common_keys(
    sizes: Sizes,
    *,
    n_ctx: int,
    n_head_kv: int | None = None,
    head_dim: int | None = None,
    rms_norm_eps: float = 1e-6,
    rope_theta: float = 10000.0,
) -> tuple[Key, ...]:
    """Return the keys of every family with a family's own defaults; None follows from the other sizes."""
    return (
        Key("n_layer", ("num_hidden_layers",), nested=sizes.n_layer),
        Key("n_embd", ("hidden_size",), nested=sizes.n_embd),
        Key("n_ff", ("intermediate_size",), nested=sizes.n_ff),
        Key("n_head", ("num_attention_heads",), nested=sizes.n_head),
        Key("n_vocab", ("vocab_size",), nested=sizes.n_vocab),
        Key("n_head_kv", ("num_key_value_heads",), n_head_kv, null_derives=True),
        Key("head_dim", ("head_dim",), head_dim, null_derives=True),
        Key("n_ctx", ("max_position_embeddings",), n_ctx),
        Key("rms_norm_eps", ("rms_norm_eps",), rms_norm_eps, "number"),
        Key("rope_theta", ("rope_theta",), rope_theta, "number"),
        Key("tie_word_embeddings", ("tie_word_embeddings",), False, "flag"),
    )


def expert_keys(n_expert: int | Missing, n_expert_used: int | Missing) -> tuple[Key, ...]:
    """Return the keys of every mixture, whichever way its tools spell them."""
    return (
        Key("n_expert", ("num_local_experts", "num_experts", "n_routed_experts"), n_expert),
        Key("n_expert_used", ("num_experts_per_tok", "num_experts_per_token"), n_expert_used),
    )


SILU = Fixed("hidden_act", ("silu", "swish"), "llama.cpp computes these families with silu only")
WHOLE_HEADS = Fixed("partial_rotary_factor", (1.0, 1), "llama.cpp's graph rotates whole heads")
NO_DENSE_AMONG = Fixed("mlp_only_layers", ([],), "llama.cpp's graph has experts in every layer")
EVERY_LAYER = Fixed("decoder_sparse_step", (1,), "llama.cpp's graph has experts in every layer")
