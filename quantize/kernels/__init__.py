"""SIMD encoders of the GGML types: rows as they are stored (float32, float16, bfloat16 bits) to encoded rows.

The bytes are those of llama.cpp's own encoder. Rows on which that cannot be promised (NaN, infinities, values so
small or large that C's integer rounding overflows) are found by the kernels and given to that encoder.
"""

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import gguf
import numpy as np

from ...formats.floats import widen
from ..ggml import dequantize, quantize_chunk, row_bytes

_T = gguf.GGMLQuantizationType
_MODULES = {
    _T.Q2_K: "asymmetric",
    _T.Q4_K: "asymmetric",
    _T.Q5_K: "asymmetric",
    _T.Q3_K: "symmetric",
    _T.Q6_K: "symmetric",
    _T.Q4_0: "legacy",
    _T.Q4_1: "legacy",
    _T.Q5_0: "legacy",
    _T.Q5_1: "legacy",
    _T.Q8_0: "legacy",
}
# Numbers as in tiles.py, which is not imported here: it would load Numba.
_SOURCES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.uint16): 2}
_FLOATS = {_T.F32: 0, _T.F16: 1, _T.BF16: 2}
# Weights that llama.cpp's encoder is given at a time, so that their float32 form stays small.
_CHUNK_WEIGHTS = 1 << 19


@cache
def has_kernel(qtype: gguf.GGMLQuantizationType) -> bool:
    """Tell whether `encode` has a SIMD encoder for this type; the others go through llama.cpp's."""
    return (qtype in _MODULES or qtype in _FLOATS) and find_spec("numba") is not None


def encode(
    qtype: gguf.GGMLQuantizationType, rows: np.ndarray, out: np.ndarray, imatrix: np.ndarray | None = None
) -> None:
    """Encode rows [n, row_length] (float32, float16, or uint16 bfloat16 bits) into uint8 `out` [n, row_bytes].

    `imatrix` is float32 [row_length]. May run on several threads at once; releases the GIL. The bytes equal those
    of llama.cpp's ggml_quantize_chunk. Raises PlanError when the row length does not fit the type.
    """
    rows = np.require(rows, requirements=["C", "W"])
    n_bytes = row_bytes(qtype, rows.shape[1])
    if out.shape != (len(rows), n_bytes) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out must be a contiguous uint8 array of shape {(len(rows), n_bytes)}")
    if qtype in _FLOATS:
        _convert(qtype, rows, out)
    elif has_kernel(qtype):
        doubtful = np.flatnonzero(_run_kernel(qtype, rows, out, imatrix))
        if doubtful.size:
            out[doubtful] = _encode_by_llama_cpp(qtype, rows[doubtful], imatrix)
    else:
        out[...] = _encode_by_llama_cpp(qtype, rows, imatrix)


def self_check(qtype: gguf.GGMLQuantizationType, rows: np.ndarray, imatrix: np.ndarray | None = None) -> bool:
    """Tell whether the kernel encodes these rows (float32, float16, bfloat16 bits) as this llama.cpp does.

    False also where there is no kernel or it cannot be compiled here: use `quantize_chunk` for the type then.
    """
    if not has_kernel(qtype):
        return False
    out = np.empty((len(rows), row_bytes(qtype, rows.shape[1])), np.uint8)
    from numba.core.errors import NumbaError

    try:
        encode(qtype, rows, out, imatrix)
    except (NumbaError, OSError, RuntimeError):
        return False
    return np.array_equal(out, _encode_by_llama_cpp(qtype, rows, imatrix))


def measure(qtype: gguf.GGMLQuantizationType, rows: np.ndarray, encoded: np.ndarray) -> tuple[float, float]:
    """Return the sum of squared errors of encoded rows and the sum of squares of the rows themselves."""
    squared_error = squares = 0.0
    for chunk in _chunks(rows):
        exact = widen(rows[chunk])
        error = dequantize(qtype, encoded[chunk])
        error -= exact
        squared_error += float(np.vdot(error, error))
        squares += float(np.vdot(exact, exact))
    return squared_error, squares


def warm_up(
    qtypes: Iterable[gguf.GGMLQuantizationType],
    has_imatrix: bool = False,
    report: Callable[[gguf.GGMLQuantizationType], Any] | None = None,
) -> None:
    """Compile the kernels of these types, or load them from Numba's cache, so that no thread waits later.

    `report(qtype)` is called before each type. Types without a kernel are passed over.
    """
    for qtype in sorted(set(qtypes)):
        if not has_kernel(qtype):
            continue
        if report is not None:
            report(qtype)
        block_size = gguf.GGML_QUANT_SIZES[qtype][0]
        rows = np.zeros((1, max(block_size, 16)), np.float32)
        out = np.empty((1, row_bytes(qtype, rows.shape[1])), np.uint8)
        encode(qtype, rows, out)
        if has_imatrix:
            encode(qtype, rows, out, np.ones(rows.shape[1], np.float32))


@cache
def _kernel(qtype: gguf.GGMLQuantizationType) -> Callable[..., None]:
    module = import_module(f".{_MODULES[qtype]}", __package__)
    return getattr(module, f"encode_{qtype.name.lower()}")


def _run_kernel(
    qtype: gguf.GGMLQuantizationType, rows: np.ndarray, out: np.ndarray, imatrix: np.ndarray | None
) -> np.ndarray:
    """Fill `out`; return for each row whether it is doubtful, that is to be encoded anew by llama.cpp."""
    doubtful = np.zeros(len(rows), np.uint8)
    if qtype == _T.Q8_0:
        imatrix = None  # llama.cpp's encoder does not look at it
    if imatrix is not None:
        imatrix = np.require(imatrix, np.float32, ["C", "W"])
        if imatrix.shape != (rows.shape[1],):
            raise ValueError(f"an imatrix of shape {imatrix.shape} does not fit rows of {rows.shape[1]} weights")
    block_size = gguf.GGML_QUANT_SIZES[qtype][0]
    if rows.size:
        _kernel(qtype)(
            rows.reshape(-1).view(np.uint8),
            _SOURCES[rows.dtype],
            rows.size // block_size,
            imatrix,
            rows.shape[1] // block_size,
            out.reshape(-1),
            doubtful,
        )
    return doubtful


def _convert(qtype: gguf.GGMLQuantizationType, rows: np.ndarray, out: np.ndarray) -> None:
    """Convert to F32, F16 or BF16, where rows have no meaning; the last weights are rounded out to 16."""
    from .floats import convert

    kind, target = _SOURCES[rows.dtype], _FLOATS[qtype]
    n = rows.size // 16 * 16
    if n:
        convert(rows.reshape(-1).view(np.uint8), kind, n, target, out.reshape(-1))
    if n < rows.size:
        rest = np.zeros(16, rows.dtype)
        rest[: rows.size - n] = rows.reshape(-1)[n:]
        converted = np.empty(16 * out.size // rows.size, np.uint8)
        convert(rest.view(np.uint8), kind, 16, target, converted)
        out.reshape(-1)[n * out.size // rows.size :] = converted[: (rows.size - n) * out.size // rows.size]


def _encode_by_llama_cpp(qtype: gguf.GGMLQuantizationType, rows: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
    out = np.empty((len(rows), row_bytes(qtype, rows.shape[1])), np.uint8)
    for chunk in _chunks(rows):
        quantize_chunk(qtype, widen(rows[chunk]), imatrix, out[chunk])
    return out


def _chunks(rows: np.ndarray) -> list[slice]:
    step = max(1, _CHUNK_WEIGHTS // rows.shape[1])
    return [slice(start, min(start + step, len(rows))) for start in range(0, len(rows), step)]
