"""A model's hyper-parameters: config.json as a dict in, its family and a frozen ModelConfig out.

The family comes first: its record says which keys there are and what they are when they are not there.
"""

from collections.abc import Mapping
from typing import Any

from ..formats.errors import CheckpointError
from .config_keys import REFUSED, Key
from .families import FAMILIES
from .family import Family
from .model_config import ModelConfig

LARGEST = 2**31 - 1
LARGEST_F32, SMALLEST_F32 = 3.4e38, 1.2e-38
# Where multimodal models keep the config of their text model.
TEXT_CONFIGS = ("text_config", "llm_config", "language_config")


def read_config(config: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Read the hyper-parameters of a config.json. Raises CheckpointError naming the family or key that is wrong."""
    family, keys, nested = find_family(config, where)
    _check_fixed(keys, family, where)
    values = {key.field: _read(keys, key, nested, where) for key in family.keys}
    rope = _rope(keys, values.pop("rope_theta"), where)
    stated = values["head_dim"] is not None
    if values["n_head_kv"] is None:
        values["n_head_kv"] = values["n_head"]
    parsed = ModelConfig(hf_architecture=family.hf_name, rope=rope, **values)
    _check(parsed, where)
    odd = parsed.n_embd_head * parsed.n_head != parsed.n_embd
    states = {"if stated": stated, "always": True, "if odd": odd}[family.states_head_dim]
    return ModelConfig(**{**vars(parsed), "head_dim_stated": states})


def family_of(config: ModelConfig) -> Family:
    """Return the record of the family that a config was read as."""
    return FAMILIES[config.hf_architecture]


def find_family(config: Mapping[str, Any], where: str) -> tuple[Family, Mapping[str, Any], bool]:
    """Return the family, the object that holds its keys, and whether that is nested in a multimodal model's config.

    Raises CheckpointError that says what the model is, and which families there are.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(f'{where}: architectures is {names!r}; it should name one, as ["MixtralForCausalLM"]')
    name, supported = names[0], f"supported are {', '.join(FAMILIES)}"
    if name in FAMILIES:
        return FAMILIES[name], config, False
    text = next((config[key] for key in TEXT_CONFIGS if isinstance(config.get(key), Mapping)), None)
    if text is None:
        kind = config.get("model_type")
        raise CheckpointError(
            f"{where}: architecture {name}{f' (model type {kind})' if kind else ''} is not supported; {supported}"
        )
    inner = text.get("architectures") or [None]
    kind = text.get("model_type")
    by_type = {family.model_type: family for family in FAMILIES.values()}
    family = FAMILIES.get(inner[0]) if isinstance(inner, list) and isinstance(inner[0], str) else None
    family = family or (by_type.get(kind) if isinstance(kind, str) else None)
    if family is None:
        raise CheckpointError(
            f"{where}: {name} is a multimodal model, and its text model ({kind or 'of no named type'}) is "
            f"not supported; {supported}"
        )
    # whether the output is tied is the whole model's to say
    tied = {key: config[key] for key in ("tie_word_embeddings",) if config.get(key) is not None}
    return family, {**text, **tied}, True


def positive_number(value: Any, name: str, where: str) -> float:
    """Return a number that float32 can hold. Raises CheckpointError naming the key."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not SMALLEST_F32 <= value <= LARGEST_F32:
        raise CheckpointError(f"{where}: {name} is {_shown(value)}, not a positive number that float32 can hold")
    return float(value)


def _read(keys: Mapping[str, Any], key: Key, nested: bool, where: str) -> Any:
    """Return the value of a key, or the family's default."""
    name = next((name for name in key.names if keys.get(name) is not None), None)
    if name is None:
        if key.null_derives and any(one in keys for one in key.names):
            return None
        default = key.nested if nested and key.nested is not None else key.default
        if default is REFUSED:
            raise CheckpointError(f"{where}: {key.names[0]} is missing, and nothing else tells it; add it")
        return default
    value = keys[name]
    if key.kind == "number":
        return positive_number(value, name, where)
    if key.kind == "flag":
        if not isinstance(value, bool):
            raise CheckpointError(f"{where}: {name} is {_shown(value)}, neither true nor false")
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not key.least <= value <= LARGEST:
        raise CheckpointError(f"{where}: {name} is {_shown(value)}, not a whole number of at least {key.least}")
    return value


def _shown(value: Any) -> str:
    return "an enormous integer" if isinstance(value, int) and abs(value) >= 10**20 else f"{value!r:.80}"


def _check_fixed(keys: Mapping[str, Any], family: Family, where: str) -> None:
    """Refuse what llama.cpp's graph would compute otherwise."""
    for fixed in family.fixed:
        value = keys.get(fixed.name)
        if not fixed.allows(value):
            raise CheckpointError(f"{where}: {fixed.name} is {_shown(value)}; {fixed.why}")


def _rope(keys: Mapping[str, Any], theta: float, where: str) -> dict[str, Any]:
    """Return rope_theta, rope_type and the numbers of a scaling, wherever this version of transformers put them.

    `theta` is the top level's, or the family's default.
    """
    nested = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    if not isinstance(nested, Mapping):
        raise CheckpointError(f"{where}: rope_parameters is {nested!r:.80}, not an object")
    rope = dict(nested)
    if isinstance(rope.get("full_attention"), Mapping):
        rope = dict(rope["full_attention"])
    if "original_max_position_embeddings" not in rope and keys.get("original_max_position_embeddings") is not None:
        rope["original_max_position_embeddings"] = keys["original_max_position_embeddings"]
    if "rope_type" not in rope and "type" in rope:
        rope["rope_type"] = rope["type"]
    stated = rope.get("rope_theta")
    rope["rope_theta"] = theta if stated is None else positive_number(stated, "rope_theta", where)
    if rope.get("partial_rotary_factor") not in (None, 1):
        raise CheckpointError(f"{where}: partial_rotary_factor is not 1; llama.cpp's graph rotates whole heads")
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
