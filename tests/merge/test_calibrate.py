"""Routers fitted to texts: against data whose best router is known, and against scikit-free optimality conditions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_gguf.merge.calibrate import (
    entropy_of,
    fit_router,
    fit_routers,
    labels_to_targets,
    load_of,
)
from scipy.special import softmax


def clusters(seed: int, n_expert: int, n_embd: int, apart: float, n_each: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Draw tokens around one centre per expert, every dimension with a scale of its own."""
    source = np.random.default_rng(seed)
    centres = apart * source.standard_normal((n_expert, n_embd))
    labels = np.repeat(np.arange(n_expert), n_each)
    x = (centres[labels] + source.standard_normal((len(labels), n_embd))) * source.uniform(0.1, 10, n_embd)
    return x.astype(np.float32), labels


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), n_expert=st.integers(2, 6), n_embd=st.integers(2, 24))
def test_the_slope_is_zero_at_the_fit(seed: int, n_expert: int, n_embd: int) -> None:
    x, labels = clusters(seed, n_expert, n_embd, 0.5, 60)
    targets = labels_to_targets(labels, n_expert)
    scale = x.std(axis=0)
    w = fit_router(x, targets, 0.01) * scale
    slope = (softmax((x / scale) @ w.T, axis=1) - targets).T @ (x / scale) / len(x) + 0.01 * w
    assert np.abs(slope).max() < 2e-3


def test_clusters_are_told_apart() -> None:
    x, labels = clusters(1, 4, 32, 2.0)
    fit = fit_routers(lambda layer: x, labels_to_targets(labels, 4), 2)
    assert fit.routers.shape == (2, 4, 32) and fit.routers.dtype == np.float32
    assert (fit.accuracy > 0.99).all() and (fit.entropy < 0.1).all()


def test_noise_is_left_undecided() -> None:
    source = np.random.default_rng(0)
    x = source.standard_normal((4000, 8)).astype(np.float32)
    fit = fit_routers(lambda layer: x, labels_to_targets(source.integers(0, 4, 4000), 4), 1)
    assert fit.entropy[0] > 0.98 * np.log(4)


def test_scaling_an_input_does_not_change_the_shares() -> None:
    x, labels = clusters(2, 3, 6, 0.7)
    targets, factors = labels_to_targets(labels, 3), np.array([1e-3, 1, 1e3, 7, 0.2, 50], np.float32)
    one, other = fit_router(x, targets), fit_router(x * factors, targets)
    np.testing.assert_allclose(softmax(x @ one.T, axis=1), softmax((x * factors) @ other.T, axis=1), atol=2e-3)


def test_a_constant_input_is_no_trouble() -> None:
    x, labels = clusters(3, 2, 5, 1.0)
    x[:, 2] = 0
    assert np.isfinite(fit_router(x, labels_to_targets(labels, 2))).all()


def test_loads_and_entropy() -> None:
    shares = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]])
    loads = load_of(shares, np.array([0, 0, 1]), 2, 1)
    np.testing.assert_allclose(loads, [[0.5, 0, 0.5], [0, 1, 0]])
    assert entropy_of(np.full((5, 4), 0.25)) == pytest.approx(np.log(4))
    assert entropy_of(np.eye(3)) == pytest.approx(0)
