"""Which of llama.cpp's graphs runs a checkpoint, and where none computes what its config.json asks.

Families name a graph of their own, and others that compute some of their checkpoints better (models/families).
Graphs differ in what they do with the weights of the chosen experts: some divide them by their sum, some never do.
"""

from collections.abc import Iterable
from dataclasses import replace

from ..formats.errors import CheckpointError
from ..models.config import family_of
from ..models.family import Family
from ..models.graphs import runs_otherwise
from ..models.model_config import ModelConfig
from .rope import rope_factors


def choose_graph(config: ModelConfig, tensor_names: Iterable[str], where: str) -> tuple[Family, tuple[str, ...]]:
    """Return the record of the family with the graph that fits, and warnings about what that graph does otherwise.

    Raises CheckpointError for a rope that its graph does not have.
    """
    family = _with_fitting_graph(family_of(config), config, any(".shared_expert" in name for name in tensor_names))
    if not family.graph.rope_factors and rope_factors(config) is not None:
        raise CheckpointError(
            f"{where}: llama.cpp's {family.name} graph has no rope scaling of the kind llama3; "
            "merge such models as mixtral, or as deepseek with 2 or more experts per token"
        )
    return family, _warnings(family, config)


def asks_otherwise(config: ModelConfig, family: Family) -> bool:
    """Tell whether the graph treats the chosen experts' weights otherwise than the checkpoint asks."""
    return runs_otherwise(family.name, wants_renormalizing(config), config.n_expert, config.n_expert_used)


def wants_renormalizing(config: ModelConfig) -> bool:
    """Tell whether the checkpoint divides the weights of the chosen experts by their sum."""
    rule = family_of(config).renormalizing
    if rule == "always":
        return True
    return config.norm_topk_prob and (rule == "norm_topk_prob" or config.n_expert_used > 1)


def _with_fitting_graph(family: Family, config: ModelConfig, shared: bool) -> Family:
    """Choose among graphs that have the same attention."""
    if config.n_layer_dense:
        return family
    for instead in family.instead:
        if instead.shared is shared and (wants_renormalizing(config) or not instead.renormalizing):
            kept = family.shared if shared else ()
            return replace(family, graph=instead.graph, shared=kept, dense=(), instead=())
    return family


def _warnings(family: Family, config: ModelConfig) -> tuple[str, ...]:
    if not asks_otherwise(config, family):
        return ()
    chosen = f"with {config.n_expert_used} of {config.n_expert} experts the logits will differ"
    same = f"set num_experts_per_tok to {config.n_expert} for the same"
    if wants_renormalizing(config):
        return (
            f"llama.cpp's {family.name} graph does not renormalize the weights of the chosen experts, which "
            f"config.json asks for (norm_topk_prob): {chosen} from transformers', often by tens of percent; {same}",
        )
    return (
        f"llama.cpp's {family.name} graph renormalizes the weights of the chosen experts, which config.json does "
        f"not ask for: {chosen} from transformers'; {same}",
    )
