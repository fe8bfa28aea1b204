"""F32, F16 and BF16 rows: widening, rounding as llama.cpp rounds, and finding what is not finite.

BF16 is carried as uint16 bit patterns: the upper half of a float32.
"""

import numpy as np
from gguf.constants import GGMLQuantizationType


def widen(rows: np.ndarray) -> np.ndarray:
    """Return rows of float32, float16 or BF16 (uint16) as float32, exactly; float64 is rounded."""
    if rows.dtype == np.uint16:
        wide = np.empty(rows.shape, np.uint32)
        np.left_shift(rows, 16, out=wide, dtype=np.uint32, casting="unsafe")
        return wide.view(np.float32)
    with np.errstate(over="ignore"):
        return rows.astype(np.float32, copy=False)


def to_bf16(rows: np.ndarray) -> np.ndarray:
    """Round float32 to BF16 bit patterns (uint16), to nearest even; NaN stays NaN, quiet.

    Source: ggml_compute_fp32_to_bf16 in ggml-impl.h.
    """
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    if nan.any():
        rounded = np.where(nan, (bits >> 16) | 64, rounded)
    return rounded.astype(np.uint16)


def encode_float(rows: np.ndarray, qtype: GGMLQuantizationType) -> np.ndarray:
    """Return rows of F32, F16 or BF16 as the bytes of another of these types: uint8 [n_rows, row_bytes]."""
    if qtype is GGMLQuantizationType.F32:
        encoded = widen(rows)
    elif qtype is GGMLQuantizationType.BF16:
        encoded = rows if rows.dtype == np.uint16 else to_bf16(widen(rows))
    elif qtype is GGMLQuantizationType.F16:
        with np.errstate(over="ignore"):
            encoded = rows if rows.dtype == np.float16 else widen(rows).astype(np.float16)
    else:
        raise ValueError(f"{qtype.name} is not a float type")
    return np.ascontiguousarray(encoded).view(np.uint8).reshape(len(rows), -1)


EXPONENT_MASKS = {
    np.dtype(np.uint16): (np.dtype(np.uint16), 0x7F80),
    np.dtype(np.float16): (np.dtype(np.uint16), 0x7C00),
    np.dtype(np.float32): (np.dtype(np.uint32), 0x7F800000),
}


def first_nonfinite(rows: np.ndarray) -> tuple[int, int] | None:
    """Return (row, column) of the first NaN or infinity in F32, F16 or BF16 rows, or None."""
    if rows.dtype == np.float64:
        bad = ~np.isfinite(rows)
    else:
        bits, mask = EXPONENT_MASKS[rows.dtype]
        # The largest pattern without its sign has all exponent bits set if and only if one is not finite.
        magnitude = np.ascontiguousarray(rows).view(bits) & bits.type(mask | (mask & -mask) - 1)
        if magnitude.size == 0 or magnitude.max() < mask:
            return None
        bad = magnitude >= mask
    if not bad.any():
        return None
    row, column = np.unravel_index(int(np.argmax(bad)), bad.shape)
    return int(row), int(column)
