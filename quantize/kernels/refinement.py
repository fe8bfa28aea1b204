"""make_q3_quants of llama.cpp: from the largest weight's scale, single levels move while that lowers the error.

C repeats rounds over the 16 weights of a sub-block until nothing moves, five at most. After the first round one
sub-block in five is still moving: the later rounds gather those, so that all lanes of a vector have work.
"""

import numpy as np

from .jit import inlined
from .search import GROUP_MAX_EPS, NEAREST_LIMIT, clamp, is_finite, largest
from .tiles import from_lanes, to_lanes
from .vectors import LANES, absolute, any_lane, larger, load, nearest, select, splat, store

N = 16
N_MAX = 4
# Products of this magnitude have all bits of float32, with room for the factors below.
CLEARLY_NORMAL = np.float32(1e-30)


@inlined
def first_levels(x, start, levels):
    """Round N rows to the scale of the largest. Writes N rows of levels -N_MAX .. N_MAX - 1.

    Returns the sums of w x l and w l l, the largest magnitude and the masks of empty and of valid lanes.
    """
    magnitude, extreme = largest(x, start, N)
    inverse = np.float32(-N_MAX) / extreme
    sum_lx = splat(0, LANES)
    sum_l2 = splat(0, LANES)
    for i in range(N):
        v = load(x, (start + i) * LANES, LANES)
        level = clamp(nearest(inverse * v), -N_MAX, N_MAX - 1)
        store(levels, i * LANES, level)
        w = v * v
        sum_lx += w * v * level
        sum_l2 += w * level * level
    empty = magnitude < GROUP_MAX_EPS
    valid = is_finite(sum_lx) & (absolute(inverse * extreme) <= NEAREST_LIMIT)
    return sum_lx, sum_l2, magnitude, empty, valid | empty


@inlined
def one_round(x, start, levels, sum_lx, sum_l2):
    """Let each of N rows move once.

    Returns the new sums, where something moved (1, else 0), and the mask of valid lanes.
    """
    # Numbers instead of masks: without mask registers a mask that outlives an iteration is costly.
    moved = splat(0, LANES)
    farthest = splat(0, LANES)
    for i in range(N):
        v = load(x, (start + i) * LANES, LANES)
        level = load(levels, i * LANES, LANES)
        w = v * v
        lx = sum_lx - w * v * level
        l2 = sum_l2 - w * level * level
        # Where v * l2 / lx is clearly next to the level, C changes nothing. In 16 lanes that often saves the division;
        # of 32, some lane mostly needs it.
        settled = (absolute(v * l2 - level * lx) <= np.float32(0.49) * lx) & (lx > CLEARLY_NORMAL)
        if LANES > 16 or any_lane((lx > 0) & ~settled):
            target = select(lx > 0, v * l2 / lx, level)
            farthest = larger(absolute(target), farthest)
            new = clamp(nearest(target), -N_MAX, N_MAX - 1)
            lx += w * v * new
            l2 += w * new * new
            better = (new != level) & (l2 > 0) & (lx * lx * sum_l2 > sum_lx * sum_lx * l2)
            store(levels, i * LANES, select(better, new, level))
            sum_lx = select(better, lx, sum_lx)
            sum_l2 = select(better, l2, sum_l2)
            moved = select(better, 1, moved)
    return sum_lx, sum_l2, moved, farthest <= NEAREST_LIMIT


@inlined
def later_rounds(tile, levels, sums_lx, sums_l2, changed, invalid, scratch, queue):
    """Run rounds two to five on the sub-blocks (items j * LANES + lane) that `changed` in the round before.

    `tile` and `levels` hold one block of `block` weights after the other. Updates levels and sums; sets `invalid`
    [LANES] for blocks that leave the range of `nearest_int`.
    """
    size = N * LANES
    some, x, some_levels = scratch[:size], scratch[size : 2 * size], scratch[2 * size : 3 * size]
    some_lx, some_l2 = scratch[3 * size :], scratch[3 * size + LANES :]
    some_changed, some_invalid = scratch[3 * size + 2 * LANES :], scratch[3 * size + 3 * LANES :]
    block = tile.size // LANES
    n_queued = 0
    for item in range(sums_lx.size):
        queue[n_queued] = item
        n_queued += changed[item] != 0
    for _ in range(4):
        n_left = 0
        for first in range(0, n_queued, LANES):
            n_items = min(LANES, n_queued - first)
            for k in range(LANES):
                item = queue[first + min(k, n_items - 1)]
                store(some, k * N, load(tile, item % LANES * block + item // LANES * N, N))
                some_lx[k], some_l2[k] = sums_lx[item], sums_l2[item]
            to_lanes(some, N, x)
            for k in range(LANES):
                item = queue[first + min(k, n_items - 1)]
                store(some, k * N, load(levels, item % LANES * block + item // LANES * N, N))
            to_lanes(some, N, some_levels)
            lx, l2 = load(some_lx, 0, LANES), load(some_l2, 0, LANES)
            lx, l2, moved, valid = one_round(x, 0, some_levels, lx, l2)
            from_lanes(some_levels, N, some, 0, N)
            store(some_lx, 0, lx)
            store(some_l2, 0, l2)
            store(some_changed, 0, moved)
            store(some_invalid, 0, select(valid, splat(0, LANES), 1))
            for k in range(n_items):
                item = queue[first + k]
                store(levels, item % LANES * block + item // LANES * N, load(some, k * N, N))
                sums_lx[item], sums_l2[item] = some_lx[k], some_l2[k]
                invalid[item % LANES] = max(invalid[item % LANES], some_invalid[k])
                queue[n_left] = item
                n_left += some_changed[k] != 0
        n_queued = n_left


@inlined
def refined_scales(tile, x, n_sub, levels, scales, filled, reaches, scratch, queue):
    """Fit x = scale * level in each of n_sub times N rows, levels -N_MAX .. N_MAX - 1.

    `tile` and `x` hold the same weights, block by block and with one block per lane. Fills `levels` in the order of
    `tile`, and [n_sub, LANES] of `scales`, of `reaches` (largest magnitudes) and of `filled` (0 where all x are 0).
    `scratch` has 3 * n_sub + 3 * N + 5 rows. Returns the mask of valid lanes.
    """
    size = n_sub * LANES
    sums_lx, sums_l2, changed = scratch[:size], scratch[size : 2 * size], scratch[2 * size : 3 * size]
    invalid, rest = scratch[3 * size : 3 * size + LANES], scratch[3 * size + LANES :]
    store(invalid, 0, splat(0, LANES))
    all_valid = splat(0, LANES) == 0
    for j in range(n_sub):
        sum_lx, sum_l2, magnitude, empty, valid = first_levels(x, j * N, rest)
        sum_lx, sum_l2, moved, valid_round = one_round(x, j * N, rest, sum_lx, sum_l2)
        from_lanes(rest, N, levels, j * N, n_sub * N)
        all_valid &= empty | (valid & valid_round)
        store(sums_lx, j * LANES, sum_lx)
        store(sums_l2, j * LANES, sum_l2)
        store(changed, j * LANES, select(empty, 0, moved))
        store(filled, j * LANES, select(empty, splat(0, LANES), 1))
        store(reaches, j * LANES, magnitude)
    later_rounds(tile, levels, sums_lx, sums_l2, changed, invalid, rest, queue)
    for j in range(n_sub):
        sum_lx, sum_l2 = load(sums_lx, j * LANES, LANES), load(sums_l2, j * LANES, LANES)
        scale = select(sum_l2 > 0, sum_lx / sum_l2, 0)
        store(scales, j * LANES, select(load(filled, j * LANES, LANES) != 0, scale, 0))
    return all_valid & (load(invalid, 0, LANES) == 0)
