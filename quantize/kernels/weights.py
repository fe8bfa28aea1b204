"""The weight of each x in the searches' sums, as the encoders of ggml/src/ggml-quants.c set it.

In: arrays [n, LANES] of float32, one block per lane. Out: weights in the same form.
"""

import numpy as np

from .jit import inlined
from .vectors import LANES, absolute, load, splat, square_root, store


@inlined
def mean_square(x, n):
    """Return the mean of the squares of n rows, summed in order."""
    total = splat(0, LANES)
    for i in range(n):
        v = load(x, i * LANES, LANES)
        total += v * v
    return total / np.float32(n)


@inlined
def weigh(x, start, n, importance, sigma2, w):
    """Write the weights of n rows for the search with an imatrix: qw * sqrt(sigma2 + x^2). Returns their sum."""
    total = splat(0, LANES)
    for i in range(n):
        v = load(x, (start + i) * LANES, LANES)
        weight = load(importance, (start + i) * LANES, LANES) * square_root(sigma2 + v * v)
        store(w, i * LANES, weight)
        total += weight
    return total


@inlined
def copy(importance, start, n, w):
    """Write n rows of importances as weights. Returns their sum."""
    total = splat(0, LANES)
    for i in range(n):
        weight = load(importance, (start + i) * LANES, LANES)
        store(w, i * LANES, weight)
        total += weight
    return total


@inlined
def weigh_plain(x, start, n, is_q2, w):
    """Write the weights of n rows for the search without an imatrix: |x| for Q2_K, else rms(x) + |x|."""
    total = splat(0, LANES)
    for i in range(n):
        v = load(x, (start + i) * LANES, LANES)
        total += v * v
    floor = splat(0, LANES) if is_q2 else square_root(total / np.float32(n))
    for i in range(n):
        v = load(x, (start + i) * LANES, LANES)
        store(w, i * LANES, absolute(v) if is_q2 else floor + absolute(v))


@inlined
def weigh_squared(x, start, n, w):
    """Write the weights of n rows for Q6_K without an imatrix: x^2."""
    for i in range(n):
        v = load(x, (start + i) * LANES, LANES)
        store(w, i * LANES, v * v)
