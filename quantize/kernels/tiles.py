"""Tiles: LANES consecutive blocks of weights as float32, in natural order and with one block per SIMD lane.

Also the conversions between float32 and the 16-bit floats, bit for bit as ggml/src/ggml-impl.h has them.
"""

import numpy as np

from .jit import inlined
from .vectors import LANES, as_bits, from_bits, load, select, splat, store, transpose

SOURCE_F32, SOURCE_F16, SOURCE_BF16 = 0, 1, 2


@inlined
def aligned(n):
    """Return scratch memory for n float32 that starts at a cache line, so that no vector straddles two."""
    memory = np.empty(n + 16, np.float32)
    skip = (64 - memory.ctypes.data % 64) % 64 // 4
    return memory[skip : skip + n]


@inlined
def from_half(half):
    """Widen float16 bit patterns (int32 lanes) to float32."""
    magnitude = half & 0x7FFF
    # Times 2^112 moves the exponent's bias from 15 to 127 and normalizes what was denormal.
    scaled = as_bits(from_bits(magnitude << 13) * np.float32(2.0**112))
    finite = select(magnitude >= 0x7C00, scaled | 0x7F800000, scaled)
    return from_bits(finite | ((half & 0x8000) << 16))


@inlined
def to_half(value):
    """Round float32 lanes to float16 bit patterns (int32 lanes)."""
    bits = as_bits(value)
    shifted = bits + bits
    magnitude = from_bits(bits & 0x7FFFFFFF)
    scaled = (magnitude * np.float32(2.0**112)) * np.float32(2.0**-110)
    exponent = (bits & 0x7F800000) << 1
    # Compared without their lowest bit: int32 lanes are signed.
    half_bias = exponent >> 1
    half_bias = select(half_bias < (0x71000000 >> 1), 0x71000000 >> 1, half_bias)
    rounded = as_bits(from_bits(half_bias + 0x07800000) + scaled)
    nonsign = ((rounded >> 13) & 0x7C00) + (rounded & 0x0FFF)
    is_nan = (shifted >> 1) > 0x7F800000
    return ((bits >> 16) & 0x8000) | select(is_nan, 0x7E00, nonsign)


@inlined
def widen(source, kind, first, n, tile, start):
    """Write n weights (a multiple of 16) of the source, from weight `first` on, to the tile as float32."""
    if kind == SOURCE_F32:
        words = source.view(np.float32)
        for i in range(0, n, 16):
            store(tile, start + i, load(words, first + i, 16))
    elif kind == SOURCE_BF16:
        halves = source.view(np.uint16)
        for i in range(0, n, 16):
            store(tile, start + i, from_bits(load(halves, first + i, 16) << 16))
    else:
        halves = source.view(np.uint16)
        for i in range(0, n, 16):
            store(tile, start + i, from_half(load(halves, first + i, 16)))


@inlined
def to_lanes(tile, n, lanes):
    """Transpose a tile [LANES, n] to [n, LANES]; n is a multiple of 16."""
    for block in range(0, LANES, 16):
        for i in range(0, n, 16):
            transpose(tile, block * n + i, n, lanes, i * LANES + block, LANES)


@inlined
def from_lanes(lanes, n, tile, start, stride):
    """Transpose [n, LANES] back: lane k becomes the n values (a multiple of 16) from start + k * stride on."""
    for block in range(0, LANES, 16):
        for i in range(0, n, 16):
            transpose(lanes, i * LANES + block, LANES, tile, start + block * stride + i, stride)


@inlined
def load_blocks(source, kind, first, n_blocks, size, tile):
    """Fill a tile with LANES blocks from block `first` on; past the end the last block is repeated."""
    n = min(LANES, n_blocks - first)
    widen(source, kind, first * size, n * size, tile, 0)
    for lane in range(n, LANES):
        widen(source, kind, (n_blocks - 1) * size, size, tile, lane * size)


@inlined
def load_importance(imatrix, blocks_per_row, first, n_blocks, size, tile, lanes):
    """Fill `lanes` [size, LANES] with the importances that belong to the same blocks; `tile` is scratch."""
    for lane in range(LANES):
        column = min(first + lane, n_blocks - 1) % blocks_per_row * size
        for i in range(0, size, 16):
            store(tile, lane * size + i, load(imatrix, column + i, 16))
    to_lanes(tile, size, lanes)


@inlined
def report(valid, first, n_blocks, blocks_per_row, scratch, doubtful):
    """Mark in `doubtful` the rows that have a block outside the mask of valid lanes."""
    store(scratch, 0, select(valid, splat(0, LANES), 1))
    for lane in range(min(LANES, n_blocks - first)):
        if scratch[lane] != 0:
            doubtful[(first + lane) // blocks_per_row] = 1
