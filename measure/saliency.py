"""How much each expert of a layer matters: chunks of tokens in, REAP's saliency and counts out.

REAP (Lasby et al. 2025, "REAP the Experts"): the mean, over the tokens that a router sends to an expert, of the weight
that the router gives it times the norm of what it returns. llama.cpp's graph has that product as one tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..formats.errors import EngineError
from ..runner.engine import Engine
from ..runner.load_options import LoadOptions
from ..runner.model import Model
from ..runner.tap import Tap, TappedEngine
from .chunks import decode_chunks

CHOICES, WEIGHTED, RETURNED = "ffn_moe_topk-", "ffn_moe_weighted-", "ffn_moe_down-"
# Its router's weight goes into the expert, and what comes out needs none.
WEIGHTED_BEFORE = frozenset(("llama4",))


@dataclass(frozen=True)
class Saliency:
    """Of each layer that has experts: int64 tokens [n_layer, n_expert], and float64 sums of weighted norms."""

    layers: tuple[int, ...]
    tokens: np.ndarray
    norms: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """REAP's saliency [n_layer, n_expert]; 0 for an expert that no token reached."""
        return self.norms / np.maximum(self.tokens, 1)


def find_saliency(
    model: Model,
    options: LoadOptions,
    chunks: np.ndarray,
    n_expert: int,
    advance: Callable[[int], object] = lambda n_chunk: None,
) -> Saliency:
    """Decode chunks, int32 [n_chunk, n_ctx], each with an empty context. Raises EngineError for what is not finite."""
    returned = RETURNED if model.file.architecture in WEIGHTED_BEFORE else WEIGHTED
    tokens: dict[int, np.ndarray] = {}
    norms: dict[int, np.ndarray] = {}
    chosen = np.empty((0, 0), np.int32)

    def take(name: str, array: np.ndarray) -> None:
        nonlocal chosen
        layer = int(name.rpartition("-")[2])
        if name.startswith(CHOICES):
            chosen = array.reshape(-1, array.shape[-1])
            return
        outputs = array.reshape(chosen.size, -1)
        lengths = np.sqrt(np.einsum("ie,ie->i", outputs, outputs, dtype=np.float64))
        if not np.isfinite(lengths).all():
            raise EngineError(f"experts of layer {layer} return NaN or infinity, and those of no layer before do")
        tokens[layer] = tokens.get(layer, 0) + np.bincount(chosen.ravel(), minlength=n_expert)
        norms[layer] = norms.get(layer, 0) + np.bincount(chosen.ravel(), lengths, minlength=n_expert)

    tap = Tap(lambda name: name.startswith((CHOICES, returned)) and name.rpartition("-")[2].isdecimal(), take)
    with TappedEngine(model, options, tap) as engine:
        _decode(engine, chunks, advance)
    if not tokens:
        raise EngineError(f"{model.path}: llama.cpp's graph of {model.file.architecture!r} shows no experts' outputs")
    layers = tuple(sorted(tokens))
    return Saliency(layers, np.stack([tokens[one] for one in layers]), np.stack([norms[one] for one in layers]))


def _decode(engine: Engine, chunks: np.ndarray, advance: Callable[[int], object]) -> None:
    before = 0
    for done in decode_chunks(engine, chunks):
        advance(done - before)
        before = done


def best_experts(scores: np.ndarray, n_keep: int, whole: bool) -> np.ndarray:
    """Return the experts to keep, int64 [n_layer, n_keep] in ascending order, by scores [n_layer, n_expert].

    `whole` keeps the same ones in all layers: by the mean of scores, each divided by its layer's mean.
    """
    if whole:
        scores = np.broadcast_to((scores / scores.mean(axis=1, keepdims=True)).mean(axis=0), scores.shape)
    # Of equal ones the first are kept.
    return np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :n_keep], axis=1)
