"""How error feedback meets each type: the search for a block's scales, and the packing of levels that are chosen.

`search(y, weights, scratch, found, steps, halves)` writes steps [16, LANES] and offsets [16, LANES] behind
them, so that a weight is step * level - offset, and d and the minimum's unit as float16 bits.

Numba compiles entry points that it can name, so each type has its own.
"""

import numpy as np

from ..kernels import legacy
from ..kernels.asymmetric import pack_q2_k, pack_q4_k, pack_q5_k, search_tile
from ..kernels.jit import inlined, kernel
from ..kernels.legacy import pack as pack_legacy
from ..kernels.search import scale_and_min, symmetric_scale
from ..kernels.symmetric import STEPS, pack_q3_k, pack_q6_k, search_q3_k, search_q6_k
from ..kernels.tiles import from_half, to_half
from ..kernels.vectors import LANES, load, splat, store
from .codebook import pack_iq4_nl, pack_iq4_xs, search_iq4_nl, search_iq4_xs, to_value
from .descent import to_integer
from .feedback import round_rows


@inlined
def _plain_steps(found, row, n_sub, steps):
    """Move steps of a search to `steps`, and leave 1 there: the packers then take levels for weights."""
    for j in range(n_sub):
        store(steps, j * LANES, load(found[row], j * LANES, LANES))
        store(steps, (16 + j) * LANES, splat(0, LANES))
        store(found[row], j * LANES, splat(1, LANES))


@inlined
def _search_asymmetric(y, weights, scratch, found, steps, halves, n_sub, n_max, n_scale_max):
    half_d, half_m, valid = search_tile(y, weights, weights, n_sub, n_max, n_scale_max, scratch, found, False)
    _plain_steps(found, 8, n_sub, steps)
    for j in range(n_sub):
        store(steps, (16 + j) * LANES, load(found[9], j * LANES, LANES))
        store(found[9], j * LANES, splat(0, LANES))
    store(halves, 0, half_d)
    store(halves, LANES, half_m)
    return valid


@inlined
def search_q4_k(y, weights, scratch, found, steps, halves):
    return _search_asymmetric(y, weights, scratch, found, steps, halves, 8, 15, 63)


@inlined
def search_q5_k(y, weights, scratch, found, steps, halves):
    return _search_asymmetric(y, weights, scratch, found, steps, halves, 8, 31, 63)


@inlined
def search_q2_k(y, weights, scratch, found, steps, halves):
    return _search_asymmetric(y, weights, scratch, found, steps, halves, 16, 3, 15)


@inlined
def search_6(y, weights, scratch, found, steps, halves):
    half_d, valid = search_q6_k(y, weights, weights, scratch, found)
    _plain_steps(found, STEPS, 16, steps)
    store(halves, 0, half_d)
    return valid


@inlined
def search_3(y, weights, scratch, found, steps, halves):
    half_d, valid = search_q3_k(y, y, weights, weights, scratch, found, y, halves, False)
    _plain_steps(found, STEPS, 16, steps)
    store(halves, 0, half_d)
    return valid


@inlined
def pack_6(tile, found, lane, half_d, half_m, out, at):
    pack_q6_k(tile, found, lane, half_d, out, at)


@inlined
def pack_3(tile, found, lane, half_d, half_m, out, at):
    pack_q3_k(tile, found, tile, tile, lane, half_d, out, at)


@inlined
def _search_legacy(y, weights, scratch, found, steps, halves, n_max, is_asymmetric):
    levels, m = scratch, splat(0, LANES)
    if n_max == 127:
        d, valid = legacy.fit_symmetric(y, 127, found[0])
    elif is_asymmetric:
        d, m, _, _, _, valid = scale_and_min(y, weights, 0, 32, n_max, -0.9, 0.05, 36, False, levels)
    else:
        d, _, _, valid = symmetric_scale(y, weights, 0, 32, (n_max + 1) // 2, levels)
    half_d, half_m = to_half(d), to_half(m)
    store(halves, 0, half_d)
    store(halves, LANES, half_m)
    store(steps, 0, from_half(half_d))
    store(steps, 16 * LANES, -1 * from_half(half_m))
    store(found[0], legacy.FACTORS * LANES, splat(1, LANES))
    store(found[0], legacy.LOWS * LANES, splat(0, LANES))
    return valid


@inlined
def search_q4_0(y, weights, scratch, found, steps, halves):
    return _search_legacy(y, weights, scratch, found, steps, halves, 15, False)


@inlined
def search_q5_0(y, weights, scratch, found, steps, halves):
    return _search_legacy(y, weights, scratch, found, steps, halves, 31, False)


@inlined
def search_q4_1(y, weights, scratch, found, steps, halves):
    return _search_legacy(y, weights, scratch, found, steps, halves, 15, True)


@inlined
def search_q5_1(y, weights, scratch, found, steps, halves):
    return _search_legacy(y, weights, scratch, found, steps, halves, 31, True)


@inlined
def search_q8_0(y, weights, scratch, found, steps, halves):
    return _search_legacy(y, weights, scratch, found, steps, halves, 127, False)


@inlined
def _pack_legacy(tile, found, lane, half_d, half_m, n_max, is_asymmetric, out, at):
    halves = np.empty(2 * LANES, np.int32)
    halves[lane] = half_d
    halves[LANES + lane] = half_m
    pack_legacy(tile, found[0], halves, lane, n_max, is_asymmetric, True, out, at)


@inlined
def pack_q4_0(tile, found, lane, half_d, half_m, out, at):
    _pack_legacy(tile, found, lane, half_d, half_m, 15, False, out, at)


@inlined
def pack_q5_0(tile, found, lane, half_d, half_m, out, at):
    _pack_legacy(tile, found, lane, half_d, half_m, 31, False, out, at)


@inlined
def pack_q4_1(tile, found, lane, half_d, half_m, out, at):
    _pack_legacy(tile, found, lane, half_d, half_m, 15, True, out, at)


@inlined
def pack_q5_1(tile, found, lane, half_d, half_m, out, at):
    _pack_legacy(tile, found, lane, half_d, half_m, 31, True, out, at)


@inlined
def pack_q8_0(tile, found, lane, half_d, half_m, out, at):
    _pack_legacy(tile, found, lane, half_d, half_m, 127, False, out, at)


@kernel
def round_q2_k(*rows):
    round_rows(search_q2_k, pack_q2_k, 256, 16, 0, 3, 84, to_integer, rows)


@kernel
def round_q3_k(*rows):
    round_rows(search_3, pack_3, 256, 16, -4, 3, 110, to_integer, rows)


@kernel
def round_q4_k(*rows):
    round_rows(search_q4_k, pack_q4_k, 256, 32, 0, 15, 144, to_integer, rows)


@kernel
def round_q5_k(*rows):
    round_rows(search_q5_k, pack_q5_k, 256, 32, 0, 31, 176, to_integer, rows)


@kernel
def round_q6_k(*rows):
    round_rows(search_6, pack_6, 256, 16, -32, 31, 210, to_integer, rows)


@kernel
def round_q4_0(*rows):
    round_rows(search_q4_0, pack_q4_0, 32, 32, -8, 7, 18, to_integer, rows)


@kernel
def round_q4_1(*rows):
    round_rows(search_q4_1, pack_q4_1, 32, 32, 0, 15, 20, to_integer, rows)


@kernel
def round_q5_0(*rows):
    round_rows(search_q5_0, pack_q5_0, 32, 32, -16, 15, 22, to_integer, rows)


@kernel
def round_q5_1(*rows):
    round_rows(search_q5_1, pack_q5_1, 32, 32, 0, 31, 24, to_integer, rows)


@kernel
def round_q8_0(*rows):
    round_rows(search_q8_0, pack_q8_0, 32, 32, -127, 127, 34, to_integer, rows)


@kernel
def round_iq4_nl(*rows):
    round_rows(search_iq4_nl, pack_iq4_nl, 32, 32, -127, 113, 18, to_value, rows)


@kernel
def round_iq4_xs(*rows):
    round_rows(search_iq4_xs, pack_iq4_xs, 256, 32, -127, 113, 136, to_value, rows)
