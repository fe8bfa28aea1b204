"""A mixture run with other routers than its own, without a copy of it: a function says where each token goes.

A layer's graph computes routing logits from its router's input; what takes their place decides alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from ..formats.errors import EngineError
from .load_options import LoadOptions
from .losses import negative_log_likelihood
from .model import Model
from .tap import collect, tapped_logits

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


def rerouted(
    model: Model, options: LoadOptions, windows: Sequence[Sequence[int]], route: Route
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """Decode windows of tokens, each with an empty context; yield the token after each place and its logits.

    A window's last place has logits and no next token. Logits [n_token, n_vocab] are overwritten by the next ones;
    a window longer than options.n_ubatch comes in several parts. Raises EngineError when the model has no routers
    that can be replaced, and what `route` raises.
    """
    routing = _Routing(model, route)
    remaining = iter(windows)
    window, start = next(remaining, ()), 0
    with _one_blas_thread():
        for logits in tapped_logits(model, options, windows, routing.wants, routing.replaced, factors=True):
            routing.check()
            if start == len(window):
                window, start = next(remaining), 0
            start += len(logits)
            yield window[start - len(logits) + 1 : start + 1], logits


def enter_routers(
    model: Model, options: LoadOptions, windows: Sequence[Sequence[int]], route: Route, n_layer: int
) -> None:
    """Decode windows as `rerouted` does, for what `route` sees of them: nothing after the last router is computed."""
    routing = _Routing(model, route)
    with _one_blas_thread():
        collect(model, options, windows, routing.wants, routing.replaced, f"{LOGITS}{n_layer - 1}", factors=True)
    routing.check()


def _one_blas_thread() -> AbstractContextManager[Any]:
    """Keep BLAS, which computes a router's scores, from spinning threads where llama.cpp's own compute."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, "blas")


class _Routing:
    """Listens for what enters routers, and replaces what leaves them."""

    def __init__(self, model: Model, route: Route) -> None:
        self._model, self._route, self._seen = model, route, False

    def wants(self, name: str) -> bool:
        return name.startswith(LOGITS) and name.rpartition("-")[2].isdecimal()

    def replaced(self, name: str, entered: np.ndarray) -> np.ndarray:
        self._seen = True
        return self._route(int(name.removeprefix(LOGITS)), entered)

    def check(self) -> None:
        if not self._seen:
            raise EngineError(f"{self._model.path}: llama.cpp's graph of this model has no routers ({LOGITS}0)")


def rerouted_losses(model: Model, options: LoadOptions, tokens: Sequence[int], route: Route) -> np.ndarray:
    """Return the loss of each token as `token_losses` does, in windows of options.n_ctx, routed by `route`."""
    n_ctx = options.n_ctx or len(tokens)
    windows = [tokens[start : start + n_ctx] for start in range(0, len(tokens) - 1, n_ctx)]
    losses = [
        negative_log_likelihood(logits[: len(following)], np.asarray(following))
        for following, logits in rerouted(model, options, windows, route)
    ]
    return np.concatenate(losses) if losses else np.empty(0)
