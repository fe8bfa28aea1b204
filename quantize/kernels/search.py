"""The searches for scales and minimums of llama.cpp (ggml/src/ggml-quants.c), LANES blocks at once.

In: arrays [n, LANES] of float32, one block per lane, from row `start` on. Out: vectors of scales. Sums run in
C's order, constants are formed in float32 as C forms them. Each search also returns a mask of the lanes in which
it did what C does: where a value leaves the range in which `nearest_int` rounds, C computes with stray bits.
"""

import numpy as np

from .jit import inlined
from .vectors import LANES, absolute, larger, load, nearest, select, smaller, splat, store

NEAREST_LIMIT = np.float32(4194303.0)
GROUP_MAX_EPS = np.float32(1e-15)


@inlined
def is_finite(value):
    return value * 0 == 0


@inlined
def clamp(value, lowest, highest):
    """Keep rounded levels within [lowest, highest]."""
    return larger(smaller(value, highest), lowest)


@inlined
def weighted_error(x, w, levels, start, n, scale, low, use_mad):
    """Return the sum of w * (scale * level + low - x)^2, or of the magnitudes with `use_mad`."""
    error = splat(0, LANES)
    for i in range(n):
        v = load(x, (start + i) * LANES, LANES)
        difference = scale * load(levels, i * LANES, LANES) + low - v
        difference = absolute(difference) if use_mad else difference * difference
        error += load(w, i * LANES, LANES) * difference
    return error


@inlined
def scale_and_min(x, w, start, n, n_max, r_min, r_delta, n_step, use_mad, levels):
    """make_qkx2_quants and make_qkx3_quants: fit x = scale * level + low, levels 0 .. n_max, low <= 0.

    `w` holds n rows of weights from row 0 on; `levels` is scratch for n rows. Returns the scale, low, the inverse
    scale and the minimum from which the chosen levels are computed (inverse 0: all levels are 0), the largest
    magnitude of x, and the mask of valid lanes.
    """
    lowest = load(x, start * LANES, LANES)
    highest = lowest
    sum_w = load(w, 0, LANES)
    sum_x = sum_w * lowest
    for i in range(1, n):
        v = load(x, (start + i) * LANES, LANES)
        lowest = smaller(v, lowest)
        highest = larger(v, highest)
        weight = load(w, i * LANES, LANES)
        sum_w += weight
        sum_x += weight * v
    low = select(lowest > 0, 0, lowest)
    flat = highest <= low
    inverse = np.float32(n_max) / (highest - low)
    scale = 1 / inverse
    level_inverse, level_low = inverse, low
    valid = absolute(inverse) * larger(absolute(highest - low), absolute(lowest - low)) <= NEAREST_LIMIT
    best = splat(0, LANES)
    for i in range(n):
        v = load(x, (start + i) * LANES, LANES)
        level = clamp(nearest(inverse * (v - low)), 0, n_max)
        difference = scale * level + low - v
        difference = absolute(difference) if use_mad else difference * difference
        best += load(w, i * LANES, LANES) * difference
    for step in range(n_step + 1):
        factor = np.float32(r_min) + np.float32(r_delta) * np.float32(step) + np.float32(n_max)
        inverse = factor / (highest - low)
        valid &= absolute(inverse) * larger(absolute(highest - low), absolute(lowest - low)) <= NEAREST_LIMIT
        sum_l = splat(0, LANES)
        sum_l2 = splat(0, LANES)
        sum_xl = splat(0, LANES)
        for i in range(n):
            v = load(x, (start + i) * LANES, LANES)
            level = clamp(nearest(inverse * (v - low)), 0, n_max)
            store(levels, i * LANES, level)
            wl = load(w, i * LANES, LANES) * level
            sum_l += wl
            sum_l2 += wl * level
            sum_xl += wl * v
        determinant = sum_w * sum_l2 - sum_l * sum_l
        this_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = this_low > 0
        this_scale = select(above, sum_xl / sum_l2, (sum_w * sum_xl - sum_x * sum_l) / determinant)
        this_low = select(above, 0, this_low)
        error = weighted_error(x, w, levels, start, n, this_scale, this_low, use_mad)
        better = (determinant > 0) & (error < best)
        best = select(better, error, best)
        scale = select(better, this_scale, scale)
        level_inverse = select(better, inverse, level_inverse)
        level_low = select(better, low, level_low)
        low = select(better, this_low, low)
    scale = select(flat, 0, scale)
    level_inverse = select(flat, 0, level_inverse)
    reach = larger(absolute(lowest), absolute(highest))
    return scale, low, level_inverse, level_low, reach, (valid | flat) & is_finite(sum_x)


@inlined
def symmetric_sums(x, w, wx, start, n, n_max, inverse):
    """Return the two sums of make_qx_quants for one inverse scale."""
    sum_lx = splat(0, LANES)
    sum_l2 = splat(0, LANES)
    for i in range(n):
        level = clamp(nearest(inverse * load(x, (start + i) * LANES, LANES)), -n_max, n_max - 1)
        sum_lx += load(wx, i * LANES, LANES) * level
        sum_l2 += load(w, i * LANES, LANES) * level * level
    return sum_lx, sum_l2


@inlined
def largest(x, start, n):
    """Return the magnitude and the value of the first element that is largest in magnitude."""
    value = splat(0, LANES)
    magnitude = splat(0, LANES)
    for i in range(n):
        v = load(x, (start + i) * LANES, LANES)
        above = absolute(v) > magnitude
        magnitude = select(above, absolute(v), magnitude)
        value = select(above, v, value)
    return magnitude, value


@inlined
def symmetric_scale(x, w, start, n, n_max, wx):
    """make_qx_quants: fit x = scale * level, levels -n_max .. n_max - 1.

    `w` holds n rows of weights from row 0 on; `wx` is scratch for n rows. Returns the scale, the inverse scale
    from which the chosen levels are computed (0 where all x are 0: there C stores level 0 without adding n_max),
    the largest magnitude of x, and the mask of valid lanes.
    """
    magnitude, extreme = largest(x, start, n)
    total = splat(0, LANES)
    for i in range(n):
        product = load(w, i * LANES, LANES) * load(x, (start + i) * LANES, LANES)
        store(wx, i * LANES, product)
        total += product
    inverse = np.float32(-n_max) / extreme
    sum_lx, sum_l2 = symmetric_sums(x, w, wx, start, n, n_max, inverse)
    scale = select(sum_l2 != 0, sum_lx / sum_l2, 0)
    best = scale * sum_lx
    level_inverse = inverse
    for step in range(-9, 10):
        if step == 0:
            continue
        inverse = -(np.float32(n_max) + np.float32(0.1) * np.float32(step)) / extreme
        sum_lx, sum_l2 = symmetric_sums(x, w, wx, start, n, n_max, inverse)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        scale = select(better, sum_lx / sum_l2, scale)
        best = select(better, scale * sum_lx, best)
        level_inverse = select(better, inverse, level_inverse)
    empty = magnitude < GROUP_MAX_EPS
    valid = is_finite(total) & (absolute(level_inverse * extreme) <= NEAREST_LIMIT)
    return select(empty, 0, scale), select(empty, 0, level_inverse), magnitude, valid | empty


@inlined
def positive_inverse(x, w, n, n_max, highest):
    """Return the inverse scale of make_qp_quants' first search, around n_max / highest."""
    inverse = np.float32(n_max) / highest
    scale = 1 / inverse
    best = splat(0, LANES)
    for i in range(n):
        v = load(x, i * LANES, LANES)
        difference = v - scale * nearest(inverse * v)
        best += load(w, i * LANES, LANES) * difference * difference
    for step in range(-4, 5):
        if step == 0:
            continue
        this_inverse = (np.float32(0.1) * np.float32(step) + np.float32(n_max)) / highest
        this_scale = 1 / this_inverse
        error = splat(0, LANES)
        for i in range(n):
            v = load(x, i * LANES, LANES)
            difference = v - this_scale * smaller(nearest(this_inverse * v), n_max)
            error += load(w, i * LANES, LANES) * difference * difference
        better = error < best
        best = select(better, error, best)
        inverse = select(better, this_inverse, inverse)
    return inverse


@inlined
def positive_scale(x, w, n, n_max, levels):
    """make_qp_quants: fit x = scale * level for x >= 0, levels 0 .. n_max, and write the levels.

    Returns the scale and the mask of valid lanes.
    """
    highest = splat(0, LANES)
    valid = highest == 0
    for i in range(n):
        v = load(x, i * LANES, LANES)
        highest = larger(v, highest)
        valid &= v >= 0
    valid &= np.float32(n_max) / highest * highest <= NEAREST_LIMIT
    inverse = positive_inverse(x, w, n, n_max, highest)
    sum_lx = splat(0, LANES)
    sum_l2 = splat(0, LANES)
    for i in range(n):
        v = load(x, i * LANES, LANES)
        level = smaller(nearest(inverse * v), n_max)
        store(levels, i * LANES, level)
        weight = load(w, i * LANES, LANES)
        sum_lx += weight * v * level
        sum_l2 += weight * level * level
    empty = highest < GROUP_MAX_EPS
    for _ in range(5):
        for i in range(n):
            v = load(x, i * LANES, LANES)
            weight = load(w, i * LANES, LANES)
            level = load(levels, i * LANES, LANES)
            lx = sum_lx - weight * v * level
            l2 = sum_l2 - weight * level * level
            target = v * l2 / lx
            tried = (lx > 0) & (l2 > 0)
            valid &= ~tried | (target <= NEAREST_LIMIT)
            new = smaller(nearest(target), n_max)
            lx += weight * v * new
            l2 += weight * new * new
            better = tried & (new != level) & (lx * lx * sum_l2 > sum_lx * sum_lx * l2)
            store(levels, i * LANES, select(better, new, level))
            sum_lx = select(better, lx, sum_lx)
            sum_l2 = select(better, l2, sum_l2)
    for i in range(n):
        store(levels, i * LANES, select(empty, 0, load(levels, i * LANES, LANES)))
    scale = select(sum_l2 > 0, sum_lx / sum_l2, 0)
    return select(empty, 0, scale), valid | empty
