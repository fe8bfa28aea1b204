"""llama.cpp's own encoders and decoders of every GGML type: float32 rows to encoded rows and back.

The calls release the GIL and may run on several threads at once.
"""

import ctypes
from functools import cache
from typing import Any

import gguf
import numpy as np

from ..formats.errors import EngineError, PlanError
from ..formats.llamacpp import ggml


class _TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml/include/ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


def row_bytes(qtype: gguf.GGMLQuantizationType, row_length: int) -> int:
    """Return how many bytes a row of `row_length` weights takes.

    Raises PlanError when the row is not a whole number of blocks.
    """
    block_size, type_size = gguf.GGML_QUANT_SIZES[qtype]
    if row_length % block_size:
        raise PlanError(
            f"rows of {row_length} weights do not fit {qtype.name}'s blocks of {block_size}; pick another type"
        )
    return row_length // block_size * type_size


def requires_imatrix(qtype: gguf.GGMLQuantizationType) -> bool:
    """Tell whether llama.cpp refuses to encode this type without an importance matrix."""
    return bool(_library().ggml_quantize_requires_imatrix(int(qtype)))


def quantize_chunk(
    qtype: gguf.GGMLQuantizationType,
    rows: np.ndarray,
    imatrix: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Encode float32 rows [n, row_length] with llama.cpp's encoder into uint8 [n, row_bytes].

    `imatrix` is float32 [row_length]: one importance per column. `out`, if given, is filled and returned.
    Raises PlanError when the row length does not fit the type or the type needs an imatrix and has none.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    n_rows, row_length = rows.shape
    n_bytes = row_bytes(qtype, row_length)
    if imatrix is None and requires_imatrix(qtype):
        raise PlanError(f"{qtype.name} needs an importance matrix; give one with --imatrix")
    if imatrix is not None:
        imatrix = np.ascontiguousarray(imatrix, dtype=np.float32)
        if imatrix.shape != (row_length,):
            raise PlanError(f"an imatrix of shape {imatrix.shape} does not fit rows of {row_length} weights")
    encoded = _output(out, (n_rows, n_bytes), np.uint8)
    if n_rows:
        weights = None if imatrix is None else imatrix.ctypes.data
        _library().ggml_quantize_chunk(
            int(qtype), rows.ctypes.data, encoded.ctypes.data, 0, n_rows, row_length, weights
        )
    return encoded


def dequantize(qtype: gguf.GGMLQuantizationType, encoded: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Decode uint8 rows [n, row_bytes] of any type into float32 [n, row_length] with llama.cpp's decoder.

    `out`, if given, is filled and returned. Raises EngineError when llama.cpp cannot decode the type.
    """
    encoded = np.ascontiguousarray(encoded).view(np.uint8)
    block_size, type_size = gguf.GGML_QUANT_SIZES[qtype]
    n_rows, n_bytes = encoded.shape
    if n_bytes % type_size:
        raise PlanError(f"rows of {n_bytes} bytes cannot be {qtype.name}: its blocks take {type_size} bytes")
    rows = _output(out, (n_rows, n_bytes // type_size * block_size), np.float32)
    if qtype == gguf.GGMLQuantizationType.F32:
        rows[...] = encoded.view(np.float32)
    elif rows.size:
        _decoder(qtype)(encoded.ctypes.data, rows.ctypes.data, rows.size)
    return rows


def _output(out: np.ndarray | None, shape: tuple[int, int], dtype: type[np.generic]) -> np.ndarray:
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(f"out must be a contiguous {np.dtype(dtype)} array of shape {shape}")
    return out


@cache
def _library() -> ctypes.CDLL:
    library = ggml("ggml-base")
    pointer, int64 = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, int64, int64, int64, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    return library


@cache
def _decoder(qtype: gguf.GGMLQuantizationType) -> Any:
    address = _library().ggml_get_type_traits(int(qtype)).contents.to_float
    if not address:
        raise EngineError(f"llama.cpp has no decoder for {qtype.name}; use a source of another type")
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(address)
