"""Which experts a text goes to: a model and texts in, each expert's share of the router's choices out."""

from collections.abc import Sequence

import numpy as np

from .load_options import LoadOptions
from .model import Model, tokenize
from .tap import capture

CHOICES = "ffn_moe_topk-"


def expert_shares(model: Model, text: str, n_expert: int) -> np.ndarray:
    """Return float64 [n_layer, n_expert]: how often each layer's router chose each expert for the text's tokens.

    Rows add up to 1; layers without experts are left out.
    """
    tokens = tokenize(model, text)
    options = LoadOptions(n_ctx=max(len(tokens), 32))
    chosen = capture(model, options, tokens, lambda name: name.startswith(CHOICES))
    layers = sorted(chosen, key=lambda name: int(name.removeprefix(CHOICES)))
    counts = np.array([np.bincount(chosen[name].ravel(), minlength=n_expert) for name in layers], np.float64)
    return counts / counts.sum(axis=1, keepdims=True)


def mean_shares(model: Model, texts: Sequence[str], n_expert: int) -> np.ndarray:
    """Return float64 [n_text, n_expert]: each expert's share for each text, over all layers."""
    return np.array([expert_shares(model, text, n_expert).mean(axis=0) for text in texts])
