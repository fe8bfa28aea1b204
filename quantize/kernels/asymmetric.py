"""Encoders of Q4_K, Q5_K and Q2_K: weights as scale * level - minimum, in blocks of 256 weights.

Scales and minimums are searched with one block per SIMD lane; the levels are then computed and packed in the order
in which the weights lie. Formulas and layouts: ggml/src/ggml-quants.c, ggml/src/ggml-common.h.

Bytes of a block of 256 weights:

    Q4_K   0       2       4              16                                                        144
           | d f16 | m f16 | 12 B scales  | 4 x 32 B: low nibble weight 64j+i, high 64j+32+i        |
    Q5_K   0       2       4              16                48                                      176
           | d f16 | m f16 | 12 B scales  | 32 B fifth bits | 128 B as Q4_K                         |
    Q2_K   0                16                                                80      82            84
           | 16 B scales    | 2 x 32 B: bits 2k+1..2k of byte i: weight       | d f16 | m f16       |
           | m << 4 | scale |           128h + 32k + i                        |       |             |
"""

import numpy as np

from .jit import inlined, kernel
from .search import NEAREST_LIMIT, clamp, positive_scale, scale_and_min
from .tiles import aligned, from_half, load_blocks, load_importance, report, to_half, to_lanes
from .vectors import LANES, absolute, load, nearest, select, smaller, splat, store, to_int
from .weights import copy, mean_square, weigh, weigh_plain

BLOCK = 256


@inlined
def round_to_largest(values, n, n_max, levels):
    """Round n rows of positive values to 0 .. n_max of the largest. Writes levels, returns the unit and validity."""
    highest = splat(0, LANES)
    for j in range(n):
        v = load(values, j * LANES, LANES)
        highest = select(v > highest, v, highest)
    inverse = select(highest > 0, np.float32(n_max) / highest, 0)
    valid = inverse * highest <= NEAREST_LIMIT
    for j in range(n):
        v = load(values, j * LANES, LANES)
        valid &= v >= 0
        store(levels, j * LANES, smaller(nearest(inverse * v), n_max))
    return highest / np.float32(n_max), valid


@inlined
def search_tile(x, imatrix, importance, n_sub, n_max, n_scale_max, scratch, found, is_weighed=True):
    """Search one tile; fills the rows of `found` that `place` names and returns the mask of valid lanes.

    Unless `is_weighed`, importances are the weights as they are.
    """
    n = BLOCK // n_sub
    is_q2 = n_max == 3
    w, levels = scratch[: n * LANES], scratch[n * LANES : 2 * n * LANES]
    scales, mins, sums, inverses, lows, reaches = found[0], found[1], found[2], found[3], found[4], found[5]
    valid = splat(0, LANES) == 0
    sigma2 = mean_square(x, BLOCK) * np.float32(1 if is_q2 else 2)
    for j in range(n_sub):
        if imatrix is None:
            weigh_plain(x, j * n, n, is_q2, w)
            r_min = -1.0 if n_max == 15 else -0.5
            n_step = 20 if n_max == 15 else 15
            fit = scale_and_min(x, w, j * n, n, n_max, r_min, 0.1, n_step, is_q2, levels)
        else:
            sum_w = weigh(x, j * n, n, importance, sigma2, w) if is_weighed else copy(importance, j * n, n, w)
            store(sums, j * LANES, sum_w)
            fit = scale_and_min(x, w, j * n, n, n_max, -0.9, 0.05, 36, False, levels)
        store(scales, j * LANES, fit[0])
        store(mins, j * LANES, -1 * fit[1])
        store(inverses, j * LANES, fit[2])
        store(lows, j * LANES, fit[3])
        store(reaches, j * LANES, fit[4])
        valid &= fit[5]
    scale_levels, min_levels, steps, offsets = found[6], found[7], found[8], found[9]
    if imatrix is None:
        d, valid_d = round_to_largest(scales, n_sub, n_scale_max, scale_levels)
        m, valid_m = round_to_largest(mins, n_sub, n_scale_max, min_levels)
    else:
        d, valid_d = positive_scale(scales, sums, n_sub, n_scale_max, scale_levels)
        m, valid_m = positive_scale(mins, sums, n_sub, n_scale_max, min_levels)
    valid &= valid_d & valid_m
    half_d, half_m = to_half(d), to_half(m)
    for j in range(n_sub):
        step = from_half(half_d) * load(scale_levels, j * LANES, LANES)
        offset = from_half(half_m) * load(min_levels, j * LANES, LANES)
        store(steps, j * LANES, step)
        store(offsets, j * LANES, offset)
        reach = (load(reaches, j * LANES, LANES) + offset) / step
        valid &= (step == 0) | (absolute(reach) <= NEAREST_LIMIT)
    return half_d, half_m, valid


@inlined
def levels16(tile, at, found, j, lane, n_max):
    """Return the levels of 16 weights of sub-block j; where its scale is 0, the levels of the search, as C does."""
    v = load(tile, at, 16)
    step = found[8, j * LANES + lane]
    if step != 0:
        rounded = nearest((v + found[9, j * LANES + lane]) / step)
    else:
        rounded = nearest(found[3, j * LANES + lane] * (v - found[4, j * LANES + lane]))
    return to_int(clamp(rounded, 0, n_max))


@inlined
def write_half(out, at, half):
    out[at] = half & 0xFF
    out[at + 1] = half >> 8


@inlined
def pack_scales(found, lane, out, at):
    """Pack 8 scales and 8 minimums of 6 bits into 12 bytes.

    bit     7     6     5     4     3     2     1     0
    0 - 3   | scale 4-7 >> 4  | scale 0-3                |
    4 - 7   | min 4-7 >> 4    | min 0-3                  |
    8 - 11  | min 4-7 & 15          | scale 4-7 & 15     |
    """
    for j in range(4):
        scale, low = int(found[6, j * LANES + lane]), int(found[7, j * LANES + lane])
        scale4, low4 = int(found[6, (j + 4) * LANES + lane]), int(found[7, (j + 4) * LANES + lane])
        out[at + j] = scale | (scale4 >> 4) << 6
        out[at + 4 + j] = low | (low4 >> 4) << 6
        out[at + 8 + j] = (scale4 & 15) | (low4 & 15) << 4


@inlined
def pack_q4_k(tile, found, lane, half_d, half_m, out, at):
    """Pack a block of Q4_K, drawn above."""
    write_half(out, at, half_d)
    write_half(out, at + 2, half_m)
    pack_scales(found, lane, out, at + 4)
    for j in range(0, 8, 2):
        for i in range(0, 32, 16):
            first = levels16(tile, lane * BLOCK + 32 * j + i, found, j, lane, 15)
            second = levels16(tile, lane * BLOCK + 32 * j + 32 + i, found, j + 1, lane, 15)
            store(out, at + 16 + 16 * j + i, first | (second << 4))


@inlined
def pack_q5_k(tile, found, lane, half_d, half_m, out, at):
    """Pack a block of Q5_K, drawn above; bit j of byte i of the fifth bits is that of weight 32j + i."""
    write_half(out, at, half_d)
    write_half(out, at + 2, half_m)
    pack_scales(found, lane, out, at + 4)
    for i in range(0, 32, 16):
        high = to_int(splat(0, 16))
        for j in range(0, 8, 2):
            first = levels16(tile, lane * BLOCK + 32 * j + i, found, j, lane, 31)
            second = levels16(tile, lane * BLOCK + 32 * j + 32 + i, found, j + 1, lane, 31)
            store(out, at + 48 + 16 * j + i, (first & 15) | ((second & 15) << 4))
            high |= ((first >> 4) << j) | ((second >> 4) << (j + 1))
        store(out, at + 16 + i, high)


@inlined
def pack_q2_k(tile, found, lane, half_d, half_m, out, at):
    """Pack a block of Q2_K, drawn above."""
    for j in range(16):
        out[at + j] = int(found[6, j * LANES + lane]) | int(found[7, j * LANES + lane]) << 4
    for half in range(2):
        for i in range(2):
            packed = to_int(splat(0, 16))
            for k in range(4):
                j = 8 * half + 2 * k + i
                packed |= levels16(tile, lane * BLOCK + 16 * j, found, j, lane, 3) << (2 * k)
            store(out, at + 16 + 32 * half + 16 * i, packed)
    write_half(out, at + 80, half_d)
    write_half(out, at + 82, half_m)


@inlined
def encode_tiles(
    source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful, pack, n_sub, n_max, n_scale_max, n_bytes
):
    tile, x = aligned(BLOCK * LANES), aligned(BLOCK * LANES)
    scratch = aligned(64 * LANES)
    found = aligned(10 * 16 * LANES).reshape(10, 16 * LANES)
    halves = np.empty(2 * LANES, np.int32)
    importance = aligned(BLOCK * LANES)
    for first in range(0, n_blocks, LANES):
        if imatrix is not None:
            load_importance(imatrix, blocks_per_row, first, n_blocks, BLOCK, tile, importance)
        load_blocks(source, kind, first, n_blocks, BLOCK, tile)
        to_lanes(tile, BLOCK, x)
        half_d, half_m, valid = search_tile(x, imatrix, importance, n_sub, n_max, n_scale_max, scratch, found)
        store(halves, 0, half_d)
        store(halves, LANES, half_m)
        report(valid, first, n_blocks, blocks_per_row, scratch, doubtful)
        for lane in range(min(LANES, n_blocks - first)):
            at = (first + lane) * n_bytes
            d, m = halves[lane], halves[LANES + lane]
            pack(tile, found, lane, d, m, out, at)


@kernel
def encode_q4_k(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful):
    encode_tiles(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful, pack_q4_k, 8, 15, 63, 144)


@kernel
def encode_q5_k(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful):
    encode_tiles(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful, pack_q5_k, 8, 31, 63, 176)


@kernel
def encode_q2_k(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful):
    encode_tiles(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful, pack_q2_k, 16, 3, 15, 84)
