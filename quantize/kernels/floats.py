"""Encoder of F16, BF16 and F32: any of the three in, any of the three out.

Rounding bit for bit as ggml/src/ggml-impl.h: to nearest, ties to even; NaN as llama.cpp writes it.
"""

import numpy as np

from .jit import inlined, kernel
from .tiles import SOURCE_BF16, SOURCE_F32, aligned, to_half, widen
from .vectors import as_bits, load, select, store

CHUNK = 1024


@inlined
def to_bfloat16(value):
    """Round float32 lanes to bfloat16 bit patterns (int32 lanes); NaN stays one, and becomes quiet."""
    bits = as_bits(value)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return select(is_nan, (bits >> 16) | 64, rounded)


@kernel
def convert(source, kind, n, target, out):
    """Convert n weights (a multiple of 16) of the source into the target kind."""
    tile = aligned(CHUNK)
    halves = out.view(np.uint16)
    for first in range(0, n, CHUNK):
        size = min(CHUNK, n - first)
        if target == SOURCE_F32:
            widen(source, kind, first, size, out.view(np.float32), first)
            continue
        widen(source, kind, first, size, tile, 0)
        for i in range(0, size, 16):
            v = load(tile, i, 16)
            store(halves, first + i, to_bfloat16(v) if target == SOURCE_BF16 else to_half(v))
