"""A mixture run with other routers than its own, without a copy of it: a function says where each token goes.

A layer's graph computes routing logits from its router's input; what takes their place decides alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from ..formats.errors import EngineError
from .engine import Engine
from .load_options import LoadOptions
from .losses import token_losses
from .model import Model
from .tap import Tap, TappedEngine, decode_each

# A router's product in build_moe_ffn of src/llama-graph.cpp; its input has another name in every second graph.
LOGITS = "ffn_moe_logits-"
NEVER = -1e4

# A layer and what enters its router, float32 [n_token, n_embd], to routing logits [n_token, n_expert].
Route = Callable[[int, np.ndarray], np.ndarray]


def by_routers(routers: np.ndarray, factor: float = 1.0) -> Route:
    """Route as routers [n_layer, n_expert, n_embd] do, their scores multiplied by a factor."""
    scaled = np.float32(factor) * routers
    return lambda layer, x: x @ scaled[layer].T


def to_expert(expert: int, n_expert: int) -> Route:
    """Route every token to one expert in every layer; the others' weights are zero."""
    logits = np.full(n_expert, NEVER, np.float32)
    logits[expert] = 0
    return lambda layer, x: np.tile(logits, (len(x), 1))


@contextmanager
def rerouted(model: Model, options: LoadOptions, route: Route, last: str | None = None) -> Iterator[Engine]:
    """Give an engine that routes by `route`; what comes after the tensor `last` is not computed.

    Decoding raises what `route` raises, the end of the block EngineError when the model has no routers that can be
    replaced.
    """
    seen = False

    def wanted(name: str) -> bool:
        return name.startswith(LOGITS) and name.rpartition("-")[2].isdecimal()

    def replaced(name: str, entered: np.ndarray) -> np.ndarray:
        nonlocal seen
        seen = True
        return route(int(name.removeprefix(LOGITS)), entered)

    with _one_blas_thread(), TappedEngine(model, options, Tap(wanted, replaced, last, factors=True)) as engine:
        yield engine
    if not seen:
        raise EngineError(f"{model.path}: llama.cpp's graph of this model has no routers ({LOGITS}0)")


def enter_routers(
    model: Model, options: LoadOptions, windows: Sequence[Sequence[int]], route: Route, n_layer: int
) -> None:
    """Decode windows of tokens for what `route` sees of them: nothing after the last router is computed."""
    with rerouted(model, options, route, f"{LOGITS}{n_layer - 1}") as engine:
        decode_each(engine, windows)


def rerouted_losses(model: Model, options: LoadOptions, tokens: Sequence[int], route: Route) -> np.ndarray:
    """Return the loss of each token as `token_losses` does, in windows of options.n_ctx, routed by `route`."""
    with rerouted(model, options, route) as engine:
        return token_losses(engine, tokens, options.n_ctx or len(tokens))


def _one_blas_thread() -> AbstractContextManager[Any]:
    """Keep BLAS, which computes a router's scores, from spinning threads where llama.cpp's own compute."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, "blas")
