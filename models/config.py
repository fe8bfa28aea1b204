"""A model's hyper-parameters: the one place where keys of a Hugging Face config.json appear.

In: config.json as a dict. Out: a frozen ModelConfig whose numbers were checked to be possible.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..formats.errors import CheckpointError

LARGEST = 2**31 - 1
LARGEST_F32, SMALLEST_F32 = 3.4e38, 1.2e-38
# transformers fills in the width of a head for these when config.json leaves it out.
HEAD_DIM_FILLED_IN = ("LlamaForCausalLM", "MistralForCausalLM")


@dataclass(frozen=True)
class ModelConfig:
    """Hyper-parameters by llama.cpp's names; None where the config says nothing."""

    hf_architecture: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    head_dim: int | None
    n_ctx: int | None
    rms_norm_eps: float
    rope: Mapping[str, Any]
    tie_word_embeddings: bool
    n_expert: int
    n_expert_used: int
    n_ff_expert: int | None
    n_ff_shared: int | None
    n_expert_shared: int
    n_layer_dense: int
    norm_topk_prob: bool | None

    @property
    def stated_head_dim(self) -> int | None:
        """Width of a head where config.json, or transformers in its place, states it."""
        return self.n_embd_head if self.head_dim or self.hf_architecture in HEAD_DIM_FILLED_IN else None

    @property
    def n_embd_head(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def n_ff_exp(self) -> int:
        """Width of an expert's hidden layer."""
        return self.n_ff_expert or self.n_ff

    @property
    def n_ff_shexp(self) -> int:
        """Width of all shared experts' hidden layers together."""
        return self.n_ff_shared or self.n_ff_exp * max(self.n_expert_shared, 1)


class _Keys:
    """Looks keys up in a config and says which one is wrong."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = config, where

    def first(self, *names: str) -> tuple[str, Any]:
        for name in names:
            if self.config.get(name) is not None:
                return name, self.config[name]
        return names[0], None

    def count(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """Return a whole number, or `default` when none of the names is there."""
        name, value = self.first(*names)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self.where}: {name} is missing; is this the config of a language model?")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
            raise CheckpointError(f"{self.where}: {name} is {value!r}, not a whole number of at least {least}")
        return value

    def optional(self, *names: str) -> int | None:
        return self.count(*names) if self.first(*names)[1] is not None else None

    def positive(self, *names: str, default: float) -> float:
        name, value = self.first(*names)
        if value is None:
            return default
        return positive_number(value, name, self.where)


def positive_number(value: Any, name: str, where: str) -> float:
    """Return a number that float32 can hold. Raises CheckpointError naming the key."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not SMALLEST_F32 <= value <= LARGEST_F32:
        shown = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "an enormous integer"
        raise CheckpointError(f"{where}: {name} is {shown}, not a positive number that float32 can hold")
    return float(value)


def read_config(config: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Read the hyper-parameters of a config.json. Raises CheckpointError naming the key that is wrong."""
    keys = _Keys(config, where)
    n_head = keys.count("num_attention_heads")
    n_expert = keys.count("num_local_experts", "num_experts", "n_routed_experts", default=0)
    parsed = ModelConfig(
        hf_architecture=_architecture(config, where),
        n_layer=keys.count("num_hidden_layers"),
        n_embd=keys.count("hidden_size"),
        n_ff=keys.count("intermediate_size"),
        n_head=n_head,
        n_head_kv=keys.count("num_key_value_heads", default=n_head),
        n_vocab=keys.count("vocab_size"),
        head_dim=keys.optional("head_dim"),
        n_ctx=keys.optional("max_position_embeddings"),
        rms_norm_eps=keys.positive("rms_norm_eps", default=1e-6),
        rope=_rope(config, where),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        n_expert=n_expert,
        n_expert_used=keys.count("num_experts_per_tok", "num_experts_per_token", default=2 if n_expert else 0),
        n_ff_expert=keys.optional("moe_intermediate_size"),
        n_ff_shared=keys.optional("shared_expert_intermediate_size"),
        n_expert_shared=keys.count("n_shared_experts", default=0, least=0),
        n_layer_dense=keys.count("first_k_dense_replace", default=0, least=0),
        norm_topk_prob=config.get("norm_topk_prob"),
    )
    _check(parsed, where)
    return parsed


def _architecture(config: Mapping[str, Any], where: str) -> str:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise CheckpointError(
            f"{where}: hidden_act is {activation!r}; llama.cpp computes these families with silu only"
        )
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(f'{where}: architectures is {names!r}; it should name one, as ["MixtralForCausalLM"]')
    return names[0]


def _rope(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return rope_theta, rope_type and the numbers of a scaling, wherever this version of transformers put them."""
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(nested, Mapping):
        raise CheckpointError(f"{where}: rope_parameters is {nested!r}, not an object")
    rope = dict(nested)
    if isinstance(rope.get("full_attention"), Mapping):
        rope = dict(rope["full_attention"])
    for key in ("rope_theta", "original_max_position_embeddings"):
        if key not in rope and config.get(key) is not None:
            rope[key] = config[key]
    if "rope_type" not in rope and "type" in rope:
        rope["rope_type"] = rope["type"]
    if "rope_theta" in rope:
        rope["rope_theta"] = positive_number(rope["rope_theta"], "rope_theta", where)
    return rope


def _check(config: ModelConfig, where: str) -> None:
    if config.n_head % config.n_head_kv:
        raise CheckpointError(
            f"{where}: num_attention_heads {config.n_head} is not a multiple of num_key_value_heads {config.n_head_kv}"
        )
    if config.head_dim is None and config.n_embd % config.n_head:
        raise CheckpointError(
            f"{where}: hidden_size {config.n_embd} is not a multiple of num_attention_heads {config.n_head}"
        )
    if config.n_embd_head % 2:
        raise CheckpointError(f"{where}: heads of {config.n_embd_head} numbers cannot be rotated in pairs")
    if config.n_expert and config.n_expert_used > config.n_expert:
        raise CheckpointError(
            f"{where}: num_experts_per_tok is {config.n_expert_used}, more than the {config.n_expert} experts there are"
        )
