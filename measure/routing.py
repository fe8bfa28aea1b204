"""Which experts a text goes to: a model and texts in, the weight that each expert has on them out."""

from collections.abc import Sequence

import numpy as np

from ..runner.load_options import LoadOptions
from ..runner.model import Model, tokenize
from ..runner.tap import capture

# Tensors of build_moe_ffn in src/llama-graph.cpp: the chosen experts, and their weights.
CHOICES, WEIGHTS = "ffn_moe_topk-", "ffn_moe_weights-"


def expert_shares(model: Model, text: str, n_expert: int) -> np.ndarray:
    """Return float64 [n_layer, n_expert]: each expert's part of the chosen experts' weights for the text's tokens.

    Rows add up to 1; layers without experts are left out.
    """
    tokens = tokenize(model, text)
    options = LoadOptions(n_ctx=max(len(tokens), 32))
    found = capture(model, options, tokens, lambda name: name.startswith((CHOICES, WEIGHTS)))
    layers = sorted(int(name.removeprefix(CHOICES)) for name in found if name.startswith(CHOICES))
    shares = np.zeros((len(layers), n_expert))
    for row, layer in zip(shares, layers, strict=True):
        chosen = found[f"{CHOICES}{layer}"]
        weights = found[f"{WEIGHTS}{layer}"].reshape(chosen.shape).astype(np.float64)
        np.add.at(row, chosen, weights / weights.sum(axis=1, keepdims=True))
    return shares / len(tokens)


def mean_shares(model: Model, texts: Sequence[str], n_expert: int) -> np.ndarray:
    """Return float64 [n_text, n_expert]: each expert's share for each text, over all layers."""
    return np.array([expert_shares(model, text, n_expert).mean(axis=0) for text in texts])
