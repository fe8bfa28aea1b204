"""What a mix must know of a model: GGUF metadata comes in, a few numbers go out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import Keys

from ..formats.errors import PlanError

# Architectures and depths that llama.cpp calls "70B", where the small value matrices get more bits.
_SEVENTY_B = {("llama", 80), ("llama-embed", 80), ("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68)}


@dataclass(frozen=True)
class ModelFacts:
    """The model as a mix sees it; heads are the first layer's, `n_layer` counts every block of the file."""

    architecture: str
    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int
    tied: bool
    seventy_b: bool = False

    @property
    def n_gqa(self) -> int:
        """How many query heads share a key and value head in the first layer."""
        return self.n_head // self.n_head_kv if self.n_head_kv else 0


def facts_of(metadata: Mapping[str, Any], tensor_names: Iterable[str]) -> ModelFacts:
    """Read the facts from GGUF metadata (plain values, after --override-kv) and the tensors' names.

    Raises PlanError when the architecture or the number of layers is missing, or a number is none.
    """
    architecture = metadata.get(Keys.General.ARCHITECTURE)
    if not isinstance(architecture, str):
        raise PlanError(f"the model's metadata has no {Keys.General.ARCHITECTURE}; convert it again")

    def hyper(key: str, default: int) -> int:
        value = metadata.get(key.format(arch=architecture), default)
        first = next(iter(value), default) if isinstance(value, (list, tuple)) else value
        if isinstance(first, bool) or not isinstance(first, int):
            raise PlanError(f"the metadata's {key.format(arch=architecture)} is {first!r}, not a whole number")
        return first

    n_layer = hyper(Keys.LLM.BLOCK_COUNT, 0)
    if n_layer < 1:
        raise PlanError(f"the metadata has no {Keys.LLM.BLOCK_COUNT.format(arch=architecture)}; convert it again")
    n_head = hyper(Keys.Attention.HEAD_COUNT, 0)
    n_head_kv = hyper(Keys.Attention.HEAD_COUNT_KV, n_head)
    n_expert = hyper(Keys.LLM.EXPERT_COUNT, 0)
    depth = n_layer - hyper(Keys.LLM.NEXTN_PREDICT_LAYERS, 0)
    seventy_b = (architecture, depth) in _SEVENTY_B
    if architecture.startswith("llama"):
        seventy_b = seventy_b and n_expert != 8 and n_head != n_head_kv
    tied = "output.weight" not in set(tensor_names)
    return ModelFacts(architecture, n_layer, n_head, n_head_kv, n_expert, tied, seventy_b)
