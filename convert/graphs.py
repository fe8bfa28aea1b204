"""Which of llama.cpp's graphs runs a checkpoint, and where none computes what its config.json asks.

Families name a graph of their own (architectures.py). Graphs differ in what they do with the weights of the chosen
experts: some divide them by their sum, some never do.
"""

from gguf.constants import MODEL_ARCH

from ..formats.checkpoint import Checkpoint
from ..formats.errors import CheckpointError
from ..models.architectures import ARCHITECTURES, Architecture, with_granite_graph, with_llama_graph
from ..models.config import ModelConfig
from ..models.routing import runs_otherwise
from .rope import rope_factors

# Graphs that load Llama 3's factors of the frequencies, `rope_freqs` (src/models/*.cpp).
WITH_ROPE_FACTORS = (MODEL_ARCH.LLAMA, MODEL_ARCH.GRANITE_MOE)


def choose_architecture(config: ModelConfig, checkpoint: Checkpoint) -> tuple[Architecture, tuple[str, ...]]:
    """Return the record of the family with the graph that fits, and warnings about what that graph does otherwise.

    Raises CheckpointError for an unsupported architecture, and for a rope that its graph does not have.
    """
    family = ARCHITECTURES.get(config.hf_architecture)
    if family is None:
        raise CheckpointError(
            f"{checkpoint.name}: architecture {config.hf_architecture} is not supported; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    architecture = _with_fitting_graph(family, config, _has_shared_expert(checkpoint))
    if architecture.gguf not in WITH_ROPE_FACTORS and rope_factors(config) is not None:
        raise CheckpointError(
            f"{checkpoint.name}: llama.cpp's {architecture.name} graph has no rope scaling of the kind llama3; "
            "merge such models as mixtral, or as deepseek with 2 or more experts per token"
        )
    return architecture, _warnings(architecture, config)


def asks_otherwise(config: ModelConfig, architecture: Architecture) -> bool:
    """Tell whether the graph treats the chosen experts' weights otherwise than the checkpoint asks."""
    return runs_otherwise(architecture.name, wants_renormalizing(config), config.n_expert, config.n_expert_used)


def wants_renormalizing(config: ModelConfig) -> bool:
    """Tell whether the checkpoint divides the weights of the chosen experts by their sum.

    Mixtral always does. DeepSeek's own code (MoEGate) leaves the weight of a single chosen expert as it is.
    """
    if config.hf_architecture == "MixtralForCausalLM":
        return True
    alone = config.hf_architecture == "DeepseekForCausalLM" and config.n_expert_used == 1
    return bool(config.norm_topk_prob) and not alone


def _with_fitting_graph(family: Architecture, config: ModelConfig, shared: bool) -> Architecture:
    """Choose among graphs that have the same attention; those of qwen2moe and deepseek cannot do without a shared
    expert and never renormalize, granitemoe is llama with shared experts that have no gate.
    """
    if family.gguf not in (MODEL_ARCH.QWEN2MOE, MODEL_ARCH.DEEPSEEK) or config.n_layer_dense:
        return family
    if not shared:
        return with_llama_graph(family)
    if family.gguf is MODEL_ARCH.DEEPSEEK and wants_renormalizing(config):
        return with_granite_graph(family)
    return family


def _warnings(architecture: Architecture, config: ModelConfig) -> tuple[str, ...]:
    if not asks_otherwise(config, architecture):
        return ()
    chosen = f"with {config.n_expert_used} of {config.n_expert} experts the logits will differ"
    same = f"set num_experts_per_tok to {config.n_expert} for the same"
    if wants_renormalizing(config):
        return (
            f"llama.cpp's {architecture.name} graph does not renormalize the weights of the chosen experts, which "
            f"config.json asks for (norm_topk_prob): {chosen} from transformers', often by tens of percent; {same}",
        )
    return (
        f"llama.cpp's {architecture.name} graph renormalizes the weights of the chosen experts, which config.json does "
        f"not ask for: {chosen} from transformers'; {same}",
    )


def _has_shared_expert(checkpoint: Checkpoint) -> bool:
    return any(".shared_expert" in name for name in checkpoint.source.tensors)
