"""Routers fitted to texts: the inputs of each layer's router and whose text each token is of come in, routers go out.

A layer's router is a multinomial logistic regression without intercept (llama.cpp's routers have none) on its inputs
divided by their standard deviations, with an L2 penalty; see `fit_router`.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

RIDGE = 1e-3
MAX_STEPS = 100


@dataclass(frozen=True)
class Fit:
    """Routers float32 [n_layer, n_expert, n_embd], and per layer how often they name the right expert, and how sure."""

    routers: np.ndarray
    accuracy: np.ndarray
    entropy: np.ndarray


# A layer's router inputs: float [n_token, n_embd].
Inputs = Callable[[int], np.ndarray]


def fit_routers(
    inputs: Inputs,
    targets: np.ndarray,
    n_layer: int,
    ridge: float = RIDGE,
    n_threads: int = 1,
    advance: Callable[[int], object] = lambda n_layers: None,
) -> Fit:
    """Fit every layer's router; `targets` are float [n_token, n_expert]: whose each token should be.

    Layers are shared out to threads: a router's matrices are too narrow for BLAS to gain by several.
    """
    from scipy.special import softmax
    from threadpoolctl import threadpool_limits

    def fit(layer: int) -> tuple[np.ndarray, float, float]:
        x = np.asarray(inputs(layer), np.float32)
        router = fit_router(x, targets, ridge)
        shares = softmax(x @ router.T, axis=1)
        return router, float((shares.argmax(1) == targets.argmax(1)).mean()), entropy_of(shares)

    fits = []
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(n_threads) as pool:
        try:
            for fitted in pool.map(fit, range(n_layer)):
                fits.append(fitted)
                advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    routers, accuracy, entropy = zip(*fits, strict=True)
    return Fit(np.stack(routers), np.array(accuracy), np.array(entropy))


def fit_router(x: np.ndarray, targets: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """Return the router [n_expert, n_embd] that minimizes mean cross-entropy + ridge * |W|^2 / 2.

    W acts on the inputs divided by their standard deviations, so that the penalty treats all of them alike; the
    returned router acts on the inputs as they are.
    """
    from scipy.optimize import minimize

    n_token, n_embd = x.shape
    n_expert = targets.shape[1]
    scale = x.std(axis=0)
    scale[scale == 0] = 1
    z = np.ascontiguousarray(x / scale, np.float32)
    wanted = np.ascontiguousarray(targets, np.float32)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(n_expert, n_embd)
        scores = z @ w.T.astype(np.float32)
        scores -= scores.max(axis=1, keepdims=True)
        log_shares = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        value = -float((wanted * log_shares).sum(dtype=np.float64)) / n_token + ridge * float((w * w).sum()) / 2
        slope = (np.exp(log_shares) - wanted).T @ z / np.float32(n_token)
        return value, (slope.astype(np.float64) + ridge * w).ravel()

    found = minimize(loss, np.zeros(n_expert * n_embd), jac=True, method="L-BFGS-B", options={"maxiter": MAX_STEPS})
    return (found.x.reshape(n_expert, n_embd) / scale).astype(np.float32)


def labels_to_targets(labels: Sequence[int] | np.ndarray, n_expert: int) -> np.ndarray:
    """Return targets that give each token wholly to the expert of its text."""
    return np.eye(n_expert, dtype=np.float32)[np.asarray(labels)]


def entropy_of(shares: np.ndarray) -> float:
    """Return the mean entropy of rows of shares, in nats: 0 is certain, log(n_expert) undecided."""
    return float(-(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=1).mean())


def load_of(shares: np.ndarray, texts: np.ndarray, n_text: int, n_used: int) -> np.ndarray:
    """Return which part of each text's routed weight each expert gets, [n_text, n_expert], n_used a token."""
    kept = np.where(shares >= np.sort(shares, axis=1)[:, -n_used][:, None], shares, 0)
    kept /= kept.sum(axis=1, keepdims=True)
    return np.stack([kept[texts == text].mean(axis=0) for text in range(n_text)])
