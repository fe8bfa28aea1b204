"""The experts' shares of a text, against the routers' own arithmetic."""

import numpy as np
from moe_gguf.measure.routing import expert_shares, mean_shares
from moe_gguf.runner.model import Model, tokenize
from moe_gguf.runner.tap import capture

from ..loaded_models import ONE_THREAD
from ..runner.tiny_gguf import N_EXPERT, N_LAYER, tiny_tensors

TEXT = "the cat and the hat in a land that had a thin can"


def test_shares_are_the_weights_of_the_two_best(tiny: Model) -> None:
    shares = expert_shares(tiny, TEXT, N_EXPERT)
    assert shares.shape == (N_LAYER, N_EXPERT)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    tokens = tokenize(tiny, TEXT)
    entered = capture(tiny, ONE_THREAD, tokens, lambda name: name.startswith("ffn_norm"))
    for layer in range(N_LAYER):
        scores = entered[f"ffn_norm-{layer}"] @ tiny_tensors()[f"blk.{layer}.ffn_gate_inp.weight"].T
        kept = np.where(scores >= np.sort(scores, axis=1)[:, -2:-1], np.exp(scores), 0)
        np.testing.assert_allclose(shares[layer], (kept / kept.sum(axis=1, keepdims=True)).mean(axis=0), atol=1e-3)


def test_texts_are_told_apart(tiny: Model) -> None:
    shares = mean_shares(tiny, [TEXT, "thin thin thin"], N_EXPERT)
    np.testing.assert_allclose(shares[0], expert_shares(tiny, TEXT, N_EXPERT).mean(axis=0))
    assert shares.shape == (2, N_EXPERT) and np.abs(shares[0] - shares[1]).max() > 0.01
