"""Encoders of Q6_K and Q3_K: weights as scale * level, levels around 0, in blocks of 256 weights.

Scales are searched with one block per SIMD lane; the levels are then computed and packed in the order in which the
weights lie. Formulas and layouts: ggml/src/ggml-quants.c, ggml/src/ggml-common.h.

Bytes of a block of 256 weights:

    Q6_K   0                               128                              192                208      210
           | 2 x 64 B low nibbles:         | 2 x 32 B high bits: bits       | 16 x i8 scales   | d f16  |
           | i of weight 128h+i, 128h+64+i | 2k+1..2k of weight 128h+32k+i  | of 16 weights    |        |
    Q3_K   0                     32                              96            108     110
           | 32 B: bit j of byte | 2 x 32 B: bits 2k+1..2k of    | 12 B scales | d f16 |
           | i: level 32j+i >> 2 | byte i: weight 128h+32k+i & 3 |             |       |
"""

import numpy as np

from .jit import inlined, kernel
from .refinement import refined_scales
from .search import GROUP_MAX_EPS, NEAREST_LIMIT, clamp, largest, symmetric_scale
from .tiles import aligned, from_half, load_blocks, load_importance, report, to_half, to_lanes
from .vectors import LANES, absolute, load, nearest, select, splat, store, to_int
from .weights import copy, mean_square, weigh, weigh_squared

BLOCK = 256
N_SUB = 16
# Rows of `found`, each [N_SUB, LANES].
SCALES, INVERSES, REACHES, SUMS, SCALE_LEVELS, STEPS = range(6)


@inlined
def scales_of_largest(found, n_max, highest, level_of_empty):
    """Round the scales so that the largest in magnitude becomes -n_max. Returns the unit and the valid lanes."""
    magnitude, extreme = largest(found[SCALES], 0, N_SUB)
    empty = magnitude < GROUP_MAX_EPS if n_max == 128 else magnitude == 0
    inverse = np.float32(-n_max) / extreme
    for j in range(N_SUB):
        level = nearest(inverse * load(found[SCALES], j * LANES, LANES))
        # Without scales C leaves 0 in the file, which in Q3_K stands for -32.
        store(found[SCALE_LEVELS], j * LANES, select(empty, level_of_empty, clamp(level, -n_max, highest)))
    return select(empty, 0, 1 / inverse), empty | (absolute(inverse * extreme) <= NEAREST_LIMIT), empty


@inlined
def finish_steps(found, half_d):
    """Compute the step of every sub-block from the rounded scales. Returns the mask of valid lanes."""
    valid = splat(0, LANES) == 0
    for j in range(N_SUB):
        step = from_half(half_d) * load(found[SCALE_LEVELS], j * LANES, LANES)
        store(found[STEPS], j * LANES, step)
        reach = load(found[REACHES], j * LANES, LANES) / step
        valid &= (step == 0) | (absolute(reach) <= NEAREST_LIMIT)
    return valid


@inlined
def levels16(tile, at, found, j, lane, n_max):
    """Return the levels of 16 weights of sub-block j; where its scale is 0, the levels of the search, as C does."""
    v = load(tile, at, 16)
    step = found[STEPS, j * LANES + lane]
    if step != 0:
        return to_int(clamp(nearest(v / step), -n_max, n_max - 1) + n_max)
    inverse = found[INVERSES, j * LANES + lane]
    if inverse != 0:
        return to_int(clamp(nearest(inverse * v), -n_max, n_max - 1) + n_max)
    return to_int(splat(0, 16))


@inlined
def pack_q6_k(tile, found, lane, half_d, out, at):
    """Pack a block of Q6_K, drawn above."""
    for half in range(2):
        for i in range(2):
            j = 8 * half + i
            q1 = levels16(tile, lane * BLOCK + 16 * j, found, j, lane, 32)
            q2 = levels16(tile, lane * BLOCK + 16 * (j + 2), found, j + 2, lane, 32)
            q3 = levels16(tile, lane * BLOCK + 16 * (j + 4), found, j + 4, lane, 32)
            q4 = levels16(tile, lane * BLOCK + 16 * (j + 6), found, j + 6, lane, 32)
            store(out, at + 64 * half + 16 * i, (q1 & 15) | ((q3 & 15) << 4))
            store(out, at + 64 * half + 32 + 16 * i, (q2 & 15) | ((q4 & 15) << 4))
            high = (q1 >> 4) | ((q2 >> 4) << 2) | ((q3 >> 4) << 4) | ((q4 >> 4) << 6)
            store(out, at + 128 + 32 * half + 16 * i, high)
    for j in range(N_SUB):
        out[at + 192 + j] = np.uint8(int(found[SCALE_LEVELS, j * LANES + lane]) & 0xFF)
    out[at + 208] = half_d & 0xFF
    out[at + 209] = half_d >> 8


@inlined
def kept16(levels, at, filled):
    """Return the 16 levels that the search of Q3_K without an imatrix left."""
    return to_int(load(levels, at, 16) + 4) if filled != 0 else to_int(splat(0, 16))


@inlined
def pack_q3_k(tile, found, imatrix, levels, lane, half_d, out, at):
    """Pack a block of Q3_K, drawn above, and its 16 scales of 6 bits, 32 added, in 12 bytes.

    bit     7    6    5    4    3    2    1    0
    0 - 7   | scale j+8 & 15    | scale j & 15     |     j = 0 .. 7
    8 - 11  | j+12    | j+8     | j+4   | scale j  | >> 4, j = 0 .. 3
    """
    for i in range(2):
        mask = to_int(splat(0, 16))
        for half in range(2):
            low = to_int(splat(0, 16))
            for k in range(4):
                j = 8 * half + 2 * k + i
                if imatrix is None and found[STEPS, j * LANES + lane] == 0:
                    level = kept16(levels, lane * BLOCK + 16 * j, found[INVERSES, j * LANES + lane])
                else:
                    level = levels16(tile, lane * BLOCK + 16 * j, found, j, lane, 4)
                mask |= (level >> 2) << (4 * half + k)
                low |= (level & 3) << (2 * k)
            store(out, at + 32 + 32 * half + 16 * i, low)
        store(out, at + 16 * i, mask)
    for j in range(8):
        first = int(found[SCALE_LEVELS, j * LANES + lane]) + 32
        second = int(found[SCALE_LEVELS, (j + 8) * LANES + lane]) + 32
        out[at + 96 + j] = (first & 15) | (second & 15) << 4
    for j in range(4):
        high = 0
        for k in range(4):
            high |= ((int(found[SCALE_LEVELS, (j + 4 * k) * LANES + lane]) + 32) >> 4) << (2 * k)
        out[at + 104 + j] = high
    out[at + 108] = half_d & 0xFF
    out[at + 109] = half_d >> 8


@inlined
def search_q6_k(x, imatrix, importance, scratch, found):
    """Search the scales of one tile of Q6_K. Returns d as float16 bits and the mask of valid lanes."""
    w, wx = scratch[: 16 * LANES], scratch[16 * LANES : 32 * LANES]
    valid = splat(0, LANES) == 0
    for j in range(N_SUB):
        if imatrix is None:
            weigh_squared(x, 16 * j, 16, w)
            fit = symmetric_scale(x, w, 16 * j, 16, 32, wx)
        else:
            fit = symmetric_scale(x, importance[16 * j * LANES :], 16 * j, 16, 32, wx)
        store(found[SCALES], j * LANES, fit[0])
        store(found[INVERSES], j * LANES, fit[1])
        store(found[REACHES], j * LANES, fit[2])
        valid &= fit[3]
    d, valid_d, empty = scales_of_largest(found, 128, 127, 0)
    for j in range(N_SUB):
        # C clears the whole block when all scales are next to 0.
        inverse = load(found[INVERSES], j * LANES, LANES)
        store(found[INVERSES], j * LANES, select(empty, 0, inverse))
    half_d = to_half(d)
    return half_d, valid & valid_d & finish_steps(found, half_d)


@inlined
def search_q3_k(tile, x, imatrix, importance, scratch, found, levels, queue, is_weighed=True):
    """Search the scales of one tile of Q3_K. Returns d as float16 bits and the mask of valid lanes."""
    if imatrix is None:
        valid = refined_scales(tile, x, N_SUB, levels, found[SCALES], found[INVERSES], found[REACHES], scratch, queue)
        d, valid_d, _ = scales_of_largest(found, 32, 31, -32)
        half_d = to_half(d)
        return half_d, valid & valid_d & finish_steps(found, half_d)
    w, wx = scratch[: 16 * LANES], scratch[16 * LANES : 32 * LANES]
    valid = splat(0, LANES) == 0
    sigma2 = mean_square(x, BLOCK) * 2
    for j in range(N_SUB):
        sum_w = weigh(x, 16 * j, 16, importance, sigma2, w) if is_weighed else copy(importance, 16 * j, 16, w)
        store(found[SUMS], j * LANES, sum_w)
        scale, inverse, reach, valid_j = symmetric_scale(x, w, 16 * j, 16, 4, wx)
        store(found[INVERSES], j * LANES, inverse)
        store(found[SCALES], j * LANES, scale)
        store(found[REACHES], j * LANES, reach)
        valid &= valid_j
    d, inverse, _, valid_d = symmetric_scale(found[SCALES], found[SUMS], 0, N_SUB, 32, wx)
    for j in range(N_SUB):
        level = clamp(nearest(inverse * load(found[SCALES], j * LANES, LANES)), -32, 31)
        store(found[SCALE_LEVELS], j * LANES, select(inverse == 0, -32, level))
    half_d = to_half(d)
    return half_d, valid & valid_d & finish_steps(found, half_d)


@kernel
def encode_q6_k(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful):
    tile, x = aligned(BLOCK * LANES), aligned(BLOCK * LANES)
    scratch, halves = aligned(32 * LANES), np.empty(LANES, np.int32)
    found = aligned(6 * N_SUB * LANES).reshape(6, N_SUB * LANES)
    importance = aligned(BLOCK * LANES)
    for first in range(0, n_blocks, LANES):
        if imatrix is not None:
            load_importance(imatrix, blocks_per_row, first, n_blocks, BLOCK, tile, importance)
        load_blocks(source, kind, first, n_blocks, BLOCK, tile)
        to_lanes(tile, BLOCK, x)
        half_d, valid = search_q6_k(x, imatrix, importance, scratch, found)
        store(halves, 0, half_d)
        report(valid, first, n_blocks, blocks_per_row, scratch, doubtful)
        for lane in range(min(LANES, n_blocks - first)):
            pack_q6_k(tile, found, lane, halves[lane], out, (first + lane) * 210)


@kernel
def encode_q3_k(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful):
    tile, x = aligned(BLOCK * LANES), aligned(BLOCK * LANES)
    scratch, halves = aligned(128 * LANES), np.empty(LANES, np.int32)
    found = aligned(6 * N_SUB * LANES).reshape(6, N_SUB * LANES)
    importance = aligned(BLOCK * LANES)
    levels, queue = aligned(BLOCK * LANES), np.empty(N_SUB * LANES, np.int32)
    for first in range(0, n_blocks, LANES):
        if imatrix is not None:
            load_importance(imatrix, blocks_per_row, first, n_blocks, BLOCK, tile, importance)
        load_blocks(source, kind, first, n_blocks, BLOCK, tile)
        to_lanes(tile, BLOCK, x)
        half_d, valid = search_q3_k(tile, x, imatrix, importance, scratch, found, levels, queue)
        store(halves, 0, half_d)
        report(valid, first, n_blocks, blocks_per_row, scratch, doubtful)
        for lane in range(min(LANES, n_blocks - first)):
            pack_q3_k(tile, found, imatrix, levels, lane, halves[lane], out, (first + lane) * 110)
