"""What tokens say of a variant, summed up: per-token losses and divergences in, means, errors and percentiles out.

Formulas: kl_divergence() of tools/perplexity/perplexity.cpp, digit for digit; percentiles are linear, in float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, sqrt
from typing import Any

import numpy as np

LEAST_TOKENS = 10
KLD_LEVELS = {"p99.9": 0.999, "p99": 0.99, "p95": 0.95, "p90": 0.9, "p10": 0.1, "p5": 0.05, "p1": 0.01, "p0.1": 0.001}
DELTA_LEVELS = {
    "p99.9": 0.999,
    "p99": 0.99,
    "p95": 0.95,
    "p90": 0.9,
    "p75": 0.75,
    "p25": 0.25,
    "p10": 0.1,
    "p5": 0.05,
    "p1": 0.01,
    "p0.1": 0.001,
}
# The base's highest probability, from this one on and below the next.
CONFIDENCE = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99)


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and what it was made of."""

    ppl: float
    error: float
    n_chunk: int
    n_token: int

    def as_json(self) -> dict[str, Any]:
        """Return the stable JSON (docs/measure.md)."""
        return {"ppl": self.ppl, "ppl_error": self.error, "n_chunks": self.n_chunk, "n_tokens": self.n_token}


def perplexity_of(losses: np.ndarray, n_chunk: int) -> Perplexity:
    """Return the perplexity of losses in nats, float64 [n_token], with the error of its mean."""
    mean = float(losses.mean())
    spread = float((losses * losses).mean()) - mean * mean
    error = sqrt(spread / (len(losses) - 1)) if spread > 0 and len(losses) > 1 else 0.0
    return Perplexity(exp(mean), error * exp(mean), n_chunk, len(losses))


@dataclass(frozen=True)
class Divergence:
    """Tokens of a variant beside the base's: float64 [n_token, 6], the columns of distributions.diverge."""

    tokens: np.ndarray

    @property
    def n_token(self) -> int:
        """How many tokens."""
        return len(self.tokens)

    @property
    def kld(self) -> Estimate:
        """Mean KL divergence in nats."""
        return _mean(self.tokens[:, 2])

    @property
    def same_top(self) -> Estimate:
        """Share of tokens for which both think the same token the likeliest."""
        share = float(self.tokens[:, 4].mean())
        return Estimate(share, sqrt(share * (1 - share) / max(self.n_token - 1, 1)))

    def ppl_json(self) -> dict[str, float]:
        """Return both perplexities, their ratio and difference, with errors by covariance."""
        ours, base = (np.asarray(self.tokens[:, column], np.float32) for column in (0, 1))
        q, b = _mean32(ours), _mean32(base)
        product = float((ours * base).astype(np.float64).mean())
        covariance = (product - q.value * b.value) / (self.n_token - 1) if self.n_token >= LEAST_TOKENS else 0.0
        ln_ratio = q.value - b.value
        ln_error = sqrt(max(q.error**2 + b.error**2 - 2 * covariance, 0.0))
        ppl_q, ppl_b = exp(q.value), exp(b.value)
        error_q, error_b = ppl_q * q.error, ppl_b * b.error
        spread = error_q**2 + error_b**2 - 2 * ppl_q * ppl_b * covariance
        return {
            "q": ppl_q,
            "q_error": error_q,
            "base": ppl_b,
            "base_error": error_b,
            "ratio": exp(ln_ratio),
            "ratio_error": exp(ln_ratio) * ln_error,
            "ln_ratio": ln_ratio,
            "ln_ratio_error": ln_error,
            "difference": ppl_q - ppl_b,
            "difference_error": sqrt(max(spread, 0.0)),
            "correlation": covariance / (q.error * b.error) if q.error and b.error else 1.0,
        }

    def kld_json(self) -> dict[str, float]:
        """Return mean, error, extremes and percentiles of the KL divergence, in nats."""
        return {"mean": self.kld.value, "mean_error": self.kld.error, **_distribution(self.tokens[:, 2], KLD_LEVELS)}

    def delta_p_json(self) -> dict[str, float]:
        """Return the same of the change of the correct token's probability (1 is 100 %), and its root mean square."""
        changes = np.asarray(self.tokens[:, 3], np.float32)
        mean, squares = _mean32(changes), _mean((changes * changes).astype(np.float64))
        rms = sqrt(squares.value)
        return {
            "mean": mean.value,
            "mean_error": mean.error,
            "rms": rms,
            "rms_error": 0.5 / rms * squares.error if rms else 0.0,
            **_distribution(changes, DELTA_LEVELS),
        }

    def by_confidence(self) -> list[dict[str, float]]:
        """Return tokens and mean KL divergence by how sure the base is: its highest probability."""
        rows, bounds = [], (*CONFIDENCE, 1.0)
        for low, high in pairwise(bounds):
            within = (self.tokens[:, 5] >= low) & ((self.tokens[:, 5] < high) | (high == 1.0))
            n_token = int(within.sum())
            kld = float(self.tokens[within, 2].mean()) if n_token else 0.0
            same = float(self.tokens[within, 4].mean()) if n_token else 0.0
            rows.append({"from": low, "to": high, "n_tokens": n_token, "kld": kld, "same_top": same})
        return rows

    def as_json(self) -> dict[str, Any]:
        """Return all of it (docs/measure.md)."""
        return {
            "ppl": self.ppl_json(),
            "kld": self.kld_json(),
            "delta_p": self.delta_p_json(),
            "same_top": {"value": self.same_top.value, "error": self.same_top.error},
            "by_confidence": self.by_confidence(),
        }


def _mean(values: np.ndarray) -> Estimate:
    mean = float(values.mean())
    spread = float((values * values).mean()) - mean * mean
    return Estimate(mean, sqrt(spread / (len(values) - 1)) if spread > 0 and len(values) > LEAST_TOKENS else 0.0)


def _mean32(values: np.ndarray) -> Estimate:
    """Return the mean of float32 values, squared in float32 and summed in float64, as perplexity.cpp does."""
    mean, squares = float(values.astype(np.float64).mean()), float((values * values).astype(np.float64).mean())
    spread = squares - mean * mean
    return Estimate(mean, sqrt(spread / (len(values) - 1)) if spread > 0 and len(values) > LEAST_TOKENS else 0.0)


def _distribution(values: np.ndarray, levels: Mapping[str, float]) -> dict[str, float]:
    ordered = np.sort(np.asarray(values, np.float32))
    high = {name: _percentile(ordered, level) for name, level in levels.items() if level > 0.5}
    low = {name: _percentile(ordered, level) for name, level in levels.items() if level < 0.5}
    middle = float(np.float32(0.5) * (ordered[len(ordered) // 2] + ordered[(len(ordered) - 1) // 2]))
    return {"max": float(ordered[-1]), **high, "median": middle, **low, "min": float(ordered[0])}


def _percentile(ordered: np.ndarray, level: float) -> float:
    place = np.float32(level) * np.float32(len(ordered) - 1)
    at = int(place)
    part = np.float32(place - np.float32(at))
    following = ordered[min(at + 1, len(ordered) - 1)]
    return float((np.float32(1) - part) * ordered[at] + part * following)


def efficient(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which of (size, divergence) points have no other that is both smaller and closer, by size."""
    order = sorted(range(len(points)), key=lambda index: points[index])
    kept: list[int] = []
    for index in order:
        if not kept or points[index][1] < points[kept[-1]][1]:
            kept.append(index)
    return kept
