"""The Cholesky factor of a matrix of moments, and its packing into panels of feedback coefficients."""

import numpy as np

from ..kernels.jit import kernel

PANEL = 8
# Columns that are eliminated before the rest is brought up to date.
WIDTH = 32


def factorize(h: np.ndarray) -> np.ndarray | None:
    """Return the lower Cholesky factor of a float64 matrix, which is overwritten; None when it is not positive.

    Sums run in the same order on any number of threads, unlike those of a BLAS.
    """
    return h if _factorize(h) else None


@kernel
def _factorize(a):
    n = len(a)
    row = np.empty(n)
    for first in range(0, n, WIDTH):
        last = min(first + WIDTH, n)
        for k in range(first, last):
            if not a[k, k] > 0:
                return False
            pivot = np.sqrt(a[k, k])
            a[k, k] = pivot
            for i in range(k + 1, n):
                a[i, k] /= pivot
            for j in range(k + 1, last):
                for i in range(j, n):
                    a[i, j] -= a[i, k] * a[j, k]
        panel = np.ascontiguousarray(a[last:, first:last].T)
        for i in range(last, n):
            n_row = i - last + 1
            row[:n_row] = a[i, last : i + 1]
            for k in range(last - first):
                factor = a[i, first + k]
                for j in range(n_row):
                    row[j] -= factor * panel[k, j]
            a[i, last : i + 1] = row[:n_row]
    return True


@kernel
def pack_coefficients(lower, out):
    """Write R_jk / R_jj by panels; `lower` is the factor of the matrix in reverse order."""
    n = len(lower)
    at = 0
    for first in range(0, n, PANEL):
        for k in range(first + PANEL):
            for i in range(PANEL):
                j = first + i
                r = n - 1 - j
                out[at] = lower[n - 1 - k, r] / lower[r, r] if k < j else 0.0
                at += 1
