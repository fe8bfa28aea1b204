"""Calibrated rounding: rows and the moments of their inputs to encoded rows whose errors cancel in the output.

The formats are ggml's, and so are the searches for scales, on weights that make up for the errors so far.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import gguf
import numpy as np

from ..ggml import row_bytes
from .factor import Factor

_T = gguf.GGMLQuantizationType
TYPES = (_T.Q2_K, _T.Q3_K, _T.Q4_K, _T.Q5_K, _T.Q6_K, _T.Q4_0, _T.Q4_1, _T.Q5_0, _T.Q5_1, _T.Q8_0)
TYPES += (_T.IQ4_NL, _T.IQ4_XS)
SWEEPS = 3
# Sweeps more than halve the pace: 14.6 to 5.0 million weights a second at 4096 columns of Q4_K, one thread.
SHORT = 2048
_SOURCES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.uint16): 2}


def can_round(qtype: gguf.GGMLQuantizationType) -> bool:
    """Tell whether errors can be fed back in this type; for the others the diagonal of the moments counts."""
    return qtype in TYPES


def round_rows(
    qtype: gguf.GGMLQuantizationType, rows: np.ndarray, factor: Factor, sweeps: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Encode rows [n, row_length] (float32, float16, or uint16 bfloat16 bits) into uint8 [n, row_bytes].

    Also returns where that is not to be used (bool [n]): values too small or too large for the search, or not finite.
    `sweeps` is how often all levels may move once they are chosen; None is thrice, and never where more than
    SHORT columns belong together. The bytes of a row do not depend on the rows beside it. Releases the GIL.
    """
    rows = np.require(rows, requirements=["C", "W"])
    n_rows, row_length = rows.shape
    out = np.empty((n_rows, row_bytes(qtype, row_length)), np.uint8)
    doubtful = np.zeros(n_rows, np.uint8)
    for segment in factor.segments:
        n = segment.stop - segment.start
        _kernel(qtype)(
            rows.reshape(-1).view(np.uint8),
            _SOURCES[rows.dtype],
            n_rows,
            row_length,
            segment.start,
            n,
            segment.order,
            segment.coefficients,
            segment.costs,
            segment.hessian.reshape(-1),
            (SWEEPS if n <= SHORT else 0) if sweeps is None else sweeps,
            out.reshape(-1),
            doubtful,
        )
    return out, doubtful.astype(bool)


def warm_up(qtypes: set[gguf.GGMLQuantizationType]) -> None:
    """Compile the kernels of these types, or load them from Numba's cache, so that no thread waits later."""
    from ...formats.moments import Moment
    from .factor import factor_of

    for qtype in sorted(filter(can_round, qtypes)):
        n = max(32, gguf.GGML_QUANT_SIZES[qtype][0])
        moment = Moment((np.eye(n, dtype=np.float32),), 1, 1.0, np.zeros((0, n), np.float32))
        round_rows(qtype, np.zeros((1, n), np.float32), factor_of(moment, gguf.GGML_QUANT_SIZES[qtype][0]))


@cache
def _kernel(qtype: gguf.GGMLQuantizationType) -> Callable[..., Any]:
    from . import blocks

    return getattr(blocks, f"round_{qtype.name.lower()}")
