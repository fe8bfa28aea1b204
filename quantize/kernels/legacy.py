"""Encoders of Q8_0, Q4_0, Q5_0, Q4_1 and Q5_1: blocks of 32 weights.

Scales are found with one block per SIMD lane; the levels are then computed and packed in the order in which the
weights lie. Formulas and layouts: ggml/src/ggml-quants.c, ggml/src/ggml-common.h.

Bytes of a block of 32 weights; a nibble byte i holds weight i below and weight i + 16 above:

    Q4_0   | d f16 | 16 B nibbles |                           18
    Q4_1   | d f16 | m f16 | 16 B nibbles |                   20
    Q5_0   | d f16 | 4 B: bit i of weight i >> 4 | 16 B |     22
    Q5_1   | d f16 | m f16 | 4 B fifth bits | 16 B nibbles |  24
    Q8_0   | d f16 | 32 x i8 |                                34
"""

import numpy as np

from .jit import inlined, kernel
from .search import clamp, is_finite, largest, scale_and_min, symmetric_scale
from .tiles import aligned, load_blocks, load_importance, report, to_half, to_lanes, widen
from .vectors import (
    LANES,
    absolute,
    larger,
    load,
    nearest,
    pack_bits,
    round_away,
    select,
    smaller,
    splat,
    store,
    to_int,
)
from .weights import weigh

BLOCK = 32
# Rows of `found`, each [LANES].
FACTORS, LOWS, SIGMAS = range(3)


@inlined
def mean_squares_of_rows(source, kind, n_rows, row_length, tile, x, means):
    """Write the mean of the squares of each row, summed in order: the sigma2 of the searches with an imatrix."""
    for first in range(0, n_rows, LANES):
        total = splat(0, LANES)
        for column in range(0, row_length, BLOCK):
            for lane in range(LANES):
                row = min(first + lane, n_rows - 1)
                widen(source, kind, row * row_length + column, BLOCK, tile, lane * BLOCK)
            to_lanes(tile, BLOCK, x)
            for i in range(BLOCK):
                v = load(x, i * LANES, LANES)
                total += v * v
        store(means, first, total / np.float32(row_length))


@inlined
def fit_symmetric(x, n_max, found):
    """Let the largest weight be -n_max (Q8_0: the largest magnitude 127). Returns d and the valid lanes."""
    magnitude, extreme = largest(x, 0, BLOCK)
    total = splat(0, LANES)
    for i in range(BLOCK):
        total += load(x, i * LANES, LANES)
    d = magnitude / np.float32(127) if n_max == 127 else extreme / np.float32(-n_max)
    factor = select(d != 0, 1 / d, 0)
    store(found, FACTORS * LANES, factor)
    return d, is_finite(total) & (absolute(extreme * factor) <= np.float32(n_max) + np.float32(0.25))


@inlined
def fit_asymmetric(x, n_max, found):
    """Spread the levels from the lowest to the highest weight. Returns d, the lowest weight and the valid lanes."""
    lowest = load(x, 0, LANES)
    highest = lowest
    total = lowest
    for i in range(1, BLOCK):
        v = load(x, i * LANES, LANES)
        lowest = smaller(v, lowest)
        highest = larger(v, highest)
        total += v
    d = (highest - lowest) / np.float32(n_max)
    factor = select(d != 0, 1 / d, 0)
    store(found, FACTORS * LANES, factor)
    store(found, LOWS * LANES, lowest)
    valid = is_finite(total) & ((highest - lowest) * factor <= np.float32(n_max) + np.float32(0.25))
    return d, lowest, valid


@inlined
def levels16(tile, at, found, lane, n_max, is_asymmetric, is_searched):
    """Return the levels of 16 weights as int32 lanes: 0 .. n_max, signed for Q8_0 (n_max 127)."""
    v = load(tile, at, 16)
    factor = found[FACTORS * LANES + lane]
    if is_asymmetric:
        scaled = (v - found[LOWS * LANES + lane]) * factor
        return to_int(clamp(nearest(scaled), 0, n_max) if is_searched else smaller(scaled + 0.5, n_max))
    scaled = v * factor
    if n_max == 127:
        return to_int(round_away(scaled))
    half = (n_max + 1) // 2
    if not is_searched:
        return to_int(smaller(scaled + (np.float32(half) + np.float32(0.5)), n_max))
    # In a block of zeros C stores level 0 without adding `half`.
    return to_int(clamp(nearest(scaled), -half, half - 1) + np.float32(half if factor != 0 else 0))


@inlined
def pack(tile, found, halves, lane, n_max, is_asymmetric, is_searched, out, at):
    """Pack a block of one of the types, drawn above."""
    out[at] = halves[lane] & 0xFF
    out[at + 1] = halves[lane] >> 8
    at += 2
    if is_asymmetric:
        out[at] = halves[LANES + lane] & 0xFF
        out[at + 1] = halves[LANES + lane] >> 8
        at += 2
    first = levels16(tile, lane * BLOCK, found, lane, n_max, is_asymmetric, is_searched)
    second = levels16(tile, lane * BLOCK + 16, found, lane, n_max, is_asymmetric, is_searched)
    if n_max == 127:
        store(out, at, first)
        store(out, at + 16, second)
        return
    if n_max == 31:
        high = pack_bits(first >> 4) | pack_bits(second >> 4) << 16
        for i in range(4):
            out[at + i] = (high >> (8 * i)) & 0xFF
        at += 4
    store(out, at, (first & 15) | ((second & 15) << 4))


@inlined
def encode_blocks(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful, n_max, is_asymmetric, n_bytes):
    tile, x = aligned(BLOCK * LANES), aligned(BLOCK * LANES)
    importance, scratch = aligned(BLOCK * LANES), aligned(2 * BLOCK * LANES)
    found, halves = aligned(3 * LANES), np.empty(2 * LANES, np.int32)
    w, levels = scratch[: BLOCK * LANES], scratch[BLOCK * LANES :]
    n_rows = n_blocks // blocks_per_row
    means = np.empty(n_rows + LANES, np.float32)
    if imatrix is not None:
        mean_squares_of_rows(source, kind, n_rows, blocks_per_row * BLOCK, tile, x, means)
    for first in range(0, n_blocks, LANES):
        if imatrix is not None:
            load_importance(imatrix, blocks_per_row, first, n_blocks, BLOCK, tile, importance)
            for lane in range(LANES):
                found[SIGMAS * LANES + lane] = means[min(first + lane, n_blocks - 1) // blocks_per_row]
        load_blocks(source, kind, first, n_blocks, BLOCK, tile)
        to_lanes(tile, BLOCK, x)
        m = splat(0, LANES)
        if imatrix is None:
            if is_asymmetric:
                d, m, valid = fit_asymmetric(x, n_max, found)
            else:
                d, valid = fit_symmetric(x, n_max if n_max == 127 else (n_max + 1) // 2, found)
        else:
            weigh(x, 0, BLOCK, importance, load(found, SIGMAS * LANES, LANES), w)
            if is_asymmetric:
                d, m, factor, low, _, valid = scale_and_min(x, w, 0, BLOCK, n_max, -0.9, 0.05, 36, False, levels)
                store(found, LOWS * LANES, low)
            else:
                d, factor, _, valid = symmetric_scale(x, w, 0, BLOCK, (n_max + 1) // 2, levels)
            store(found, FACTORS * LANES, factor)
        store(halves, 0, to_half(d))
        store(halves, LANES, to_half(m))
        report(valid, first, n_blocks, blocks_per_row, scratch, doubtful)
        for lane in range(min(LANES, n_blocks - first)):
            at = (first + lane) * n_bytes
            pack(tile, found, halves, lane, n_max, is_asymmetric, imatrix is not None, out, at)


@kernel
def encode_q8_0(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful):
    encode_blocks(source, kind, n_blocks, None, blocks_per_row, out, doubtful, 127, False, 34)


@kernel
def encode_q4_0(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful):
    encode_blocks(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful, 15, False, 18)


@kernel
def encode_q4_1(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful):
    encode_blocks(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful, 15, True, 20)


@kernel
def encode_q5_0(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful):
    encode_blocks(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful, 31, False, 22)


@kernel
def encode_q5_1(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful):
    encode_blocks(source, kind, n_blocks, imatrix, blocks_per_row, out, doubtful, 31, True, 24)
