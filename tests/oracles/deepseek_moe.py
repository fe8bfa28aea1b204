"""DeepSeek-MoE (the first one) in PyTorch: a checkpoint folder in, logits out.

transformers has no model of the type "deepseek": its code lies beside the checkpoints on the hub. This is the
published layer (https://arxiv.org/abs/2401.06066, and MoEGate in DeepSeek's modeling_deepseek.py) in the place of the
MLPs of transformers' own LlamaForCausalLM, from which attention, RoPE and norms come.
"""

from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file  # pyright: ignore[reportMissingImports]
from transformers import LlamaConfig, LlamaForCausalLM  # pyright: ignore[reportMissingImports]
from transformers.models.llama.modeling_llama import LlamaMLP  # pyright: ignore[reportMissingImports]


class DeepseekMoe(torch.nn.Module):
    """The shared experts' output plus that of the likeliest experts, each times its probability.

    With norm_topk_prob these probabilities are divided by their sum, unless there is only one.
    """

    def __init__(self, config: LlamaConfig) -> None:
        """Make a layer; names of parameters are those of checkpoints."""
        super().__init__()
        self.n_used, self.normalizes = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = torch.nn.Linear(config.hidden_size, config.n_routed_experts, bias=False)
        self.experts = torch.nn.ModuleList(
            _mlp(config, config.moe_intermediate_size) for _ in range(config.n_routed_experts)
        )
        if config.n_shared_experts:
            self.shared_experts = _mlp(config, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the layer's output [batch, tokens, n_embd], every expert computed for every token."""
        weights, chosen = self.gate(hidden).softmax(dim=-1).topk(self.n_used)
        if self.normalizes and self.n_used > 1:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        outputs = torch.stack([expert(hidden) for expert in self.experts], dim=-2)
        picked = outputs.take_along_dim(chosen[..., None], dim=-2)
        mixed = (weights[..., None] * picked).sum(dim=-2)
        return mixed + self.shared_experts(hidden) if hasattr(self, "shared_experts") else mixed


def _mlp(config: LlamaConfig, width: int) -> LlamaMLP:
    sized = LlamaConfig(**{**config.to_dict(), "intermediate_size": width})
    return LlamaMLP(sized)


def logits(folder: Path, tokens: list[int], config: dict[str, Any]) -> torch.Tensor:
    """Return the logits after each token [tokens, n_vocab] in float32; every tensor must have its place."""
    parsed = LlamaConfig(**{key: value for key, value in config.items() if key != "model_type"})
    model = LlamaForCausalLM(parsed)
    assert not parsed.first_k_dense_replace
    for layer in model.model.layers:
        layer.mlp = DeepseekMoe(parsed)
    state = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    if parsed.tie_word_embeddings:
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    model.load_state_dict(state, strict=True)
    with torch.inference_mode():
        return model.eval()(torch.tensor([tokens])).logits[0]
