"""config.json of a dense model, checked before a merge computes with it: a mapping in, one error line out."""

from collections.abc import Mapping
from typing import Any

from ..formats.errors import CheckpointError
from ..models.config import TEXT_CONFIGS
from .families import DENSE

SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
OPTIONAL_SIZES = ("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings")
OBJECTS = ("rope_scaling", "rope_parameters")
TEXTS = ("model_type", "dtype", "torch_dtype", "hidden_act")


def check_dense_config(config: Mapping[str, Any], where: object) -> None:
    """Refuse values of a kind that no dense model has. Raises CheckpointError naming the key."""
    for key in (*SIZES, *OPTIONAL_SIZES):
        value = config.get(key)
        if value is None and key in SIZES:
            raise CheckpointError(f"{where}: {_what_it_is(config, key)}")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise CheckpointError(f"{where}: {key} is {value!r}, not a whole number of at least 1")
    for keys, kind, name in ((OBJECTS, Mapping, "an object"), (TEXTS, str, "a text")):
        for key in keys:
            if config.get(key) is not None and not isinstance(config[key], kind):
                raise CheckpointError(f"{where}: {key} is {config[key]!r}, not {name}")


def _what_it_is(config: Mapping[str, Any], key: str) -> str:
    """Say why a size is missing: the model's family is looked at before its keys."""
    kind, known = config.get("model_type"), f"mixtures are made of {', '.join(DENSE)} models"
    if any(isinstance(config.get(nested), Mapping) for nested in TEXT_CONFIGS):
        return f"a multimodal model ({kind}); save its text model alone, {known}"
    if kind is not None and kind not in DENSE:
        return f"a model of type {kind}; {known}"
    return f"{key} is missing; is this the config.json of a dense language model?"
