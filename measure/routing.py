"""Which experts a text goes to: a model and texts in, the chosen experts of every token and their weights out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..formats.errors import EngineError
from ..runner.load_options import LoadOptions
from ..runner.model import Model, tokenize
from ..runner.tap import collect

# Tensors of build_moe_ffn in src/llama-graph.cpp: the chosen experts, the likeliest first, and what all of them score.
CHOICES, PROBABILITIES = "ffn_moe_topk-", "ffn_moe_probs-"
LEAST_CONTEXT = 32


@dataclass(frozen=True)
class Routes:
    """Where a text's tokens went in each layer that has experts.

    - layers: their numbers; n_expert: experts of each.
    - experts: int32 [n_layer, n_token, n_expert_used], the likeliest first.
    - weights: float32 of the same shape, 1 in sum over a token's experts.
    - probabilities: float64 [n_layer, n_expert], what the routers give each expert on average, chosen or not.
    """

    layers: tuple[int, ...]
    n_expert: int
    experts: np.ndarray
    weights: np.ndarray
    probabilities: np.ndarray

    @property
    def n_token(self) -> int:
        """Tokens of the text."""
        return self.experts.shape[1]

    @property
    def tokens(self) -> np.ndarray:
        """How many tokens went to each expert, int64 [n_layer, n_expert]."""
        return np.array([np.bincount(layer.ravel(), minlength=self.n_expert) for layer in self.experts])

    @property
    def shares(self) -> np.ndarray:
        """Each expert's part of all weights, float64 [n_layer, n_expert]; rows add up to 1."""
        shares = np.zeros((len(self.layers), self.n_expert))
        for row, chosen, weights in zip(shares, self.experts, self.weights, strict=True):
            np.add.at(row, chosen, weights)
        return shares / self.n_token

    def summed(self) -> np.ndarray:
        """Return each expert's weight for each token, the mean over layers: float64 [n_token, n_expert]."""
        total = np.zeros((self.n_token, self.n_expert))
        for chosen, weights in zip(self.experts, self.weights, strict=True):
            np.add.at(total, (np.arange(self.n_token)[:, None], chosen), weights)
        return total / len(self.layers)

    def by_layer(self) -> dict[int, np.ndarray]:
        """Return the set of experts of each token by layer, sorted, as `agreement.Agreement` compares them."""
        return {layer: np.sort(chosen, axis=1) for layer, chosen in zip(self.layers, self.experts, strict=True)}


def find_routes(
    model: Model,
    options: LoadOptions,
    windows: Sequence[Sequence[int]],
    n_expert: int,
    advance: Callable[[int], object] = lambda n_token: None,
) -> Routes:
    """Decode windows of tokens, each with an empty context, and return where all tokens went.

    Nothing after the last router is computed. Raises EngineError for a model without routers, and for scores that are
    not finite, with the layer where they begin.
    """
    chosen: dict[int, list[np.ndarray]] = {}
    weights: dict[int, list[np.ndarray]] = {}
    sums: dict[int, np.ndarray] = {}
    scores = np.empty(0)
    n_done = 0

    def take(name: str, array: np.ndarray) -> None:
        nonlocal scores, n_done
        prefix, _, number = name.rpartition("-")
        layer = int(number)
        if prefix + "-" == PROBABILITIES:
            scores = normalized(array, layer, n_done)
            sums[layer] = sums.get(layer, 0) + scores.sum(axis=0, dtype=np.float64)
            return
        own = np.take_along_axis(scores, array, axis=1)
        chosen.setdefault(layer, []).append(array)
        weights.setdefault(layer, []).append(own / own.sum(axis=1, keepdims=True))
        if layer == last:
            n_done += len(array)
            advance(len(array))

    routers = [name for name in model.file.tensors if name.endswith(".ffn_gate_inp.weight")]
    if not routers:
        raise EngineError(f"{model.path}: has no routers, so there is nothing to see: every token goes the same way")
    last = max(int(name.split(".")[1]) for name in routers)
    collect(model, options, windows, wanted, take, f"{CHOICES}{last}")
    layers = tuple(sorted(chosen))
    stacked = [np.stack([np.concatenate(parts[layer]) for layer in layers]) for parts in (chosen, weights)]
    probabilities = np.stack([sums[layer] for layer in layers]) / stacked[0].shape[1]
    return Routes(layers, n_expert, stacked[0], stacked[1].astype(np.float32), probabilities)


def wanted(name: str) -> bool:
    """Tell whether a tensor says where tokens go. A layer's scores come before its choices."""
    return name.startswith((CHOICES, PROBABILITIES)) and name.rpartition("-")[2].isdecimal()


def normalized(scores: np.ndarray, layer: int, n_done: int) -> np.ndarray:
    """Return routers' scores [n_token, n_expert] as probabilities: logits and sigmoids are none yet."""
    if not np.isfinite(scores).all():
        token = n_done + int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
        raise EngineError(
            f"the router of layer {layer} gives NaN or infinity from token {token} on, and no layer before does; the "
            "weights before it are damaged or out of F16's range: convert again, or quantize from BF16"
        )
    if (scores < 0).any():
        # gpt-oss chooses by logits, and takes the softmax of the chosen ones afterwards.
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def expert_shares(model: Model, text: str, n_expert: int) -> np.ndarray:
    """Return float64 [n_layer, n_expert]: each expert's part of the chosen experts' weights for the text's tokens.

    Rows add up to 1; layers without experts are left out.
    """
    tokens = tokenize(model, text)
    options = replace(LoadOptions(), n_ctx=max(len(tokens), LEAST_CONTEXT))
    return find_routes(model, options, [tokens], n_expert).shares


def mean_shares(model: Model, texts: Sequence[str], n_expert: int) -> np.ndarray:
    """Return float64 [n_text, n_expert]: each expert's share for each text, over all layers."""
    return np.array([expert_shares(model, text, n_expert).mean(axis=0) for text in texts])
