"""Tokens in, logits or losses of every token out: what perplexity and comparisons of models are made of."""

from collections.abc import Iterator, Sequence

import numpy as np

from .engine import Engine


def all_logits(engine: Engine, sequence: int, tokens: Sequence[int]) -> np.ndarray:
    """Append tokens to a sequence and return the logits after each: float32 [tokens, n_vocab]."""
    blocks = [logits.copy() for _, logits in logit_blocks(engine, sequence, tokens)]
    return np.concatenate(blocks) if blocks else np.empty((0, engine.model.n_vocab), np.float32)


def logit_blocks(engine: Engine, sequence: int, tokens: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Append tokens, yield (number of a block's first token, logits [block, n_vocab]); the next block overwrites it."""
    for start in range(0, len(tokens), engine.n_ubatch):
        yield start, engine.decode_all(sequence, tokens[start : start + engine.n_ubatch])


def token_losses(engine: Engine, tokens: Sequence[int], n_ctx: int) -> np.ndarray:
    """Return the loss of each token but the first of each window: negative log likelihood in nats, float64.

    The tokens are cut into windows of at most n_ctx, each read with an empty context; a window of one token has
    no loss. exp of the mean is the perplexity of non-overlapping windows, with every position counted (llama.cpp's
    own tool counts the second half of each window only).
    """
    losses: list[np.ndarray] = []
    for start in range(0, len(tokens) - 1, n_ctx):
        window = np.asarray(tokens[start : start + n_ctx])
        engine.forget(0)
        for first, logits in logit_blocks(engine, 0, window.tolist()):
            targets = window[first + 1 : first + 1 + len(logits)]
            losses.append(negative_log_likelihood(logits[: len(targets)], targets))
    engine.forget(0)
    return np.concatenate(losses) if losses else np.empty(0)


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return -log softmax(logits)[target] for rows of logits [n, n_vocab], in float64 sums over float32 terms."""
    if not len(targets):
        return np.empty(0)
    highest = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - highest).sum(axis=1, dtype=np.float64)
    chosen = logits[np.arange(len(targets)), targets].astype(np.float64)
    return np.log(total) + highest[:, 0] - chosen
