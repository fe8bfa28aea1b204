"""Logits of many tokens in, losses and divergences out: loops in Numba, a row of logits at a time, without the GIL.

Formulas and rounding to float32 are those of tools/perplexity/perplexity.cpp, which is compiled without fused
multiplication, so that printed digits agree. Only sums over the vocabulary, in float64, are in another order, which
lets the processor add several terms at once.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import exp, log
from typing import Any

import numpy as np
from numba import njit

_jit: Any = njit(cache=True, nogil=True, error_model="numpy")
_any_order: Any = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})
_fused: Any = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})

LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453
LOWEST = np.float32(-87.0)
# log probabilities below this one do not count in a divergence, as in llama.cpp
FLOOR = np.float32(-16.0)
N_THREAD = min(os.cpu_count() or 1, 16)


def in_threads(kernel: Callable[..., None], *arrays: np.ndarray) -> None:
    """Call one of the kernels below on as many stretches of its arrays' rows as there are processors, at once."""
    n_row = len(arrays[0])
    bounds = [n_row * part // N_THREAD for part in range(N_THREAD + 1)]
    parts = [[array[start:stop] for array in arrays] for start, stop in pairwise(bounds) if start < stop]
    if len(parts) < 2:
        kernel(*arrays)
        return
    with ThreadPoolExecutor(len(parts)) as pool:
        for done in [pool.submit(kernel, *part) for part in parts]:
            done.result()


@_any_order
def plus(total, term):
    """Return the sum; a loop of such sums may be done in any order."""
    return total + term


@_fused
def exp32(x):
    """Return e^x for x <= 0, rounded to float32 as the C library's expf does, and 0 below e^-87.

    Computed in float64, with a relative error under 1e-10 (Taylor's series where |r| < 0.35).
    """
    wide = np.float64(x)
    n = np.floor(wide * LOG2E + 0.5)
    r = wide - n * LN2
    p = 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    scale = np.int64((np.int64(np.int32(n)) + np.int64(1023)) << np.int64(52)).view(np.float64)
    return np.float32(p * scale) if x > LOWEST else np.float32(0)


@_jit
def spread(row):
    """Return the highest logit of a row and the sum of e^(logit - highest), in float64."""
    highest = row[0]
    for i in range(1, len(row)):
        highest = max(highest, row[i])
    total = 0.0
    for i in range(len(row)):
        total = plus(total, np.float64(exp32(row[i] - highest)))
    return highest, total


@_jit
def losses(logits, targets, out):
    """Put -ln p of each target into `out`, float64 [n], from logits float32 [n, n_vocab]."""
    for n in range(len(targets)):
        row = logits[n]
        highest, total = spread(row)
        out[n] = -(np.float64(row[targets[n]] - highest) - log(total))


@_jit
def store(logits, targets, rows, out):
    """Round log probabilities to 16 bits, as llama.cpp's --kl-divergence-base does, and give the losses, float64 [n].

    A row of `rows`, uint16 [n, 4 + n_vocab, even]: scale and lowest log probability as two float32, then the steps
    above the lowest, which is at most 16 below the highest.
    """
    for n in range(len(targets)):
        row, packed = logits[n], rows[n]
        highest, total = spread(row)
        lowest = row[0]
        for i in range(1, len(row)):
            lowest = min(lowest, row[i])
        lowest = max(lowest, highest + FLOOR)
        log_total = np.float32(log(total))
        scale = (highest - lowest) / np.float32(65535)
        head = packed[:4].view(np.float32)
        head[0], head[1] = scale, lowest - highest - log_total
        inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
        for i in range(len(row)):
            step = np.rint(inverse * (row[i] - lowest))
            packed[4 + i] = np.uint16(step) if row[i] > lowest else np.uint16(0)
        out[n] = highest + log_total - row[targets[n]]


@_jit
def load(rows, out):
    """Give back the log probabilities of `store`, float32 [n, n_vocab]."""
    for n in range(len(out)):
        head = rows[n, :4].view(np.float32)
        scale, lowest = head[0], head[1]
        for i in range(out.shape[1]):
            out[n, i] = scale * np.float32(rows[n, 4 + i]) + lowest


@_jit
def diverge(logits, base, targets, found):
    """Compare predictions with a base's log probabilities, both float32 [n, n_vocab].

    `found`, float64 [n, 6]: the loss, the base's loss, KL(base || ours), the change of the target's probability,
    whether both have the same likeliest token, and the base's highest probability.
    """
    for n in range(len(targets)):
        row, reference, token = logits[n], base[n], targets[n]
        highest, total = spread(row)
        log_total = np.float32(log(total))
        loss, base_loss = highest + log_total - row[token], -reference[token]
        shift = highest + log_total
        top, likeliest = reference[0], 0
        for i in range(1, len(row)):
            top = max(top, reference[i])
        divergence = 0.0
        for i in range(len(row)):
            p = exp32(reference[i])
            term = p * (reference[i] - row[i] + shift)
            divergence = plus(divergence, np.float64(term if reference[i] > FLOOR else np.float32(0)))
        for i in range(len(row)):
            if reference[i] == top:
                likeliest = i
                break
        same = row[likeliest] == highest
        for i in range(likeliest):
            if row[i] == highest:
                same = False
                break
        found[n, 0], found[n, 1], found[n, 2] = loss, base_loss, divergence
        found[n, 3] = np.float32(exp(-np.float64(loss))) - np.float32(exp(-np.float64(base_loss)))
        found[n, 4] = same
        found[n, 5] = exp(np.float64(top))


@_jit
def store_compact(logits, targets, rows, heads, out):
    """Round log probabilities to 8 bits, finely where they are high, and give the losses, float64 [n].

    `rows` is uint8 [n, n_vocab]: 255 * sqrt of how far below the highest, as a part of the span; `heads` is float32
    [n, 5]: the highest log probability, the span (at most 16), the target's log probability, the likeliest token, and
    the probability of all that is within the span.
    """
    for n in range(len(targets)):
        row, packed = logits[n], rows[n]
        highest, total = spread(row)
        log_total = np.float32(log(total))
        lowest, likeliest = row[0], 0
        for i in range(1, len(row)):
            lowest = min(lowest, row[i])
        for i in range(len(row)):
            if row[i] == highest:
                likeliest = i
                break
        lowest = max(lowest, highest + FLOOR)
        span = highest - lowest
        inverse = np.float32(1) / span if span > 0 else np.float32(0)
        within = 0.0
        for i in range(len(row)):
            part = min((highest - row[i]) * inverse, np.float32(1))
            packed[i] = np.uint8(np.rint(np.float32(255) * np.sqrt(part)))
            within = plus(within, np.float64(exp32(row[i] - highest) if packed[i] < 255 else np.float32(0)))
        target = row[targets[n]] - highest - log_total
        heads[n, 0], heads[n, 1], heads[n, 2], heads[n, 3] = -log_total, span, target, likeliest
        heads[n, 4] = within / total
        out[n] = -target


@_jit
def load_compact(rows, heads, targets, out):
    """Give back the log probabilities of `store_compact`, float32 [n, n_vocab].

    All are moved so that those within the span have together the probability that they had.
    """
    steps = np.empty(256, np.float32)
    for n in range(len(out)):
        top, span, likeliest = heads[n, 0], heads[n, 1], np.int64(heads[n, 3])
        for code in range(256):
            part = np.float32(code) / np.float32(255)
            steps[code] = top - span * part * part
        total = 0.0
        for i in range(out.shape[1]):
            out[n, i] = steps[rows[n, i]]
        for i in range(out.shape[1]):
            total = plus(total, np.float64(exp32(out[n, i]) if rows[n, i] < 255 else np.float32(0)))
        shift = np.float32(log(total / heads[n, 4])) if total > 0 and heads[n, 4] > 0 else np.float32(0)
        below = np.nextafter(top - shift, np.float32(-100))
        for i in range(out.shape[1]):
            out[n, i] = min(out[n, i] - shift, below)
        out[n, likeliest] = top - shift
        out[n, targets[n]] = heads[n, 2]
