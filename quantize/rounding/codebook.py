"""IQ4_NL and IQ4_XS: 16 levels that lie closer to each other near zero, in blocks of 32.

Levels are the codebook's values, as float32; the formulas of the search and the layouts are those of
ggml/src/ggml-quants.c.

    IQ4_NL   | d f16 | 16 B: index i of a weight below, i + 16 above |                                  18
    IQ4_XS   | d f16 | high bits u16 | 4 B low nibbles of 8 scales | 8 x 16 B as above |              136
"""

import numpy as np

from ..kernels.asymmetric import write_half
from ..kernels.jit import inlined
from ..kernels.search import GROUP_MAX_EPS, clamp, is_finite, largest
from ..kernels.tiles import from_half, to_half
from ..kernels.vectors import LANES, absolute, load, nearest, select, splat, store, to_int

VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
BETWEEN = (VALUES[1:] + VALUES[:-1]) / np.float32(2)
N_TRY = 7


@inlined
def to_value(value, lowest, highest):
    """Return the nearest values of the codebook."""
    found = select(value == value, VALUES[0], value)
    for i in range(15):
        found = select(value > BETWEEN[i], VALUES[i + 1], found)
    return found


@inlined
def indices(tile, at):
    """Return the indices of 16 values of the codebook as int32 lanes."""
    values = load(tile, at, 16)
    found = splat(0, 16)
    for i in range(15):
        found = select(values > BETWEEN[i], np.float32(i + 1), found)
    return to_int(found)


@inlined
def _sums(x, w, start, inverse):
    sum_qx, sum_q2 = splat(0, LANES), splat(0, LANES)
    for i in range(32):
        v, weight = load(x, (start + i) * LANES, LANES), load(w, (start + i) * LANES, LANES)
        q = to_value(inverse * v, 0, 0)
        sum_qx += weight * q * v
        sum_q2 += weight * q * q
    return sum_qx, sum_q2


@inlined
def codebook_scale(x, w, start):
    """Fit x = scale * value to 32 rows from `start` on. Returns the scale and the mask of valid lanes."""
    magnitude, extreme = largest(x, start, 32)
    scale, best = splat(0, LANES), splat(0, LANES)
    for step in range(-N_TRY, N_TRY + 1):
        for sign in range(-1, 2, 2):
            sum_qx, sum_q2 = _sums(x, w, start, np.float32(sign) * (VALUES[0] + np.float32(step)) / extreme)
            better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
            scale = select(better, sum_qx / sum_q2, scale)
            best = select(better, scale * sum_qx, best)
    empty = magnitude < GROUP_MAX_EPS
    total = splat(0, LANES)
    for i in range(32):
        total += load(x, (start + i) * LANES, LANES)
    return select(empty, 0, scale), is_finite(total)


@inlined
def search_iq4_nl(y, weights, scratch, found, steps, halves):
    d, valid = codebook_scale(y, weights, 0)
    half_d = to_half(d)
    store(halves, 0, half_d)
    store(steps, 0, from_half(half_d))
    store(steps, 16 * LANES, splat(0, LANES))
    return valid & is_finite(from_half(half_d))


@inlined
def search_iq4_xs(y, weights, scratch, found, steps, halves):
    valid = splat(0, LANES) == 0
    for j in range(8):
        scale, valid_j = codebook_scale(y, weights, 32 * j)
        store(found[0], j * LANES, scale)
        valid &= valid_j
    magnitude, extreme = largest(found[0], 0, 8)
    half_d = to_half(extreme / np.float32(-32))
    d = from_half(half_d)
    inverse = select(d == 0, 0, 1 / d)
    for j in range(8):
        level = clamp(nearest(inverse * load(found[0], j * LANES, LANES)), -32, 31)
        store(found[1], j * LANES, level)
        store(steps, j * LANES, d * level)
        store(steps, (16 + j) * LANES, splat(0, LANES))
    store(halves, 0, half_d)
    return valid & is_finite(d) & (absolute(inverse) * magnitude < np.float32(64))


@inlined
def pack_iq4_nl(tile, found, lane, half_d, half_m, out, at):
    write_half(out, at, half_d)
    store(out, at + 2, indices(tile, lane * 32) | (indices(tile, lane * 32 + 16) << 4))


@inlined
def pack_iq4_xs(tile, found, lane, half_d, half_m, out, at):
    write_half(out, at, half_d)
    high = 0
    for j in range(8):
        high |= ((int(found[1, j * LANES + lane]) + 32) >> 4) << (2 * j)
    write_half(out, at + 2, high)
    for j in range(4):
        first = int(found[1, 2 * j * LANES + lane]) + 32
        second = int(found[1, (2 * j + 1) * LANES + lane]) + 32
        out[at + 4 + j] = (first & 15) | (second & 15) << 4
    for j in range(8):
        first, second = indices(tile, lane * 256 + 32 * j), indices(tile, lane * 256 + 32 * j + 16)
        store(out, at + 8 + 16 * j, first | (second << 4))
