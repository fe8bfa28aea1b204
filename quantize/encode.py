"""Rows to the bytes of a quantized type: our kernels where they have proven themselves, else llama.cpp's encoder.

At the first rows of each tensor the kernel is compared with llama.cpp's own encoder; if one byte differs (a
library compiled with other arithmetic), that type falls back to it, and `fallen_back` says so.
"""

import threading
from collections.abc import Callable

import numpy as np
from gguf.constants import GGMLQuantizationType

from ..formats.floats import widen
from ..formats.plan import Plan, PlannedTensor
from .ggml import dequantize, quantize_chunk

CHECKED_WEIGHTS = 16384
Importance = Callable[[PlannedTensor], np.ndarray | None]


class Encoder:
    """Encodes slabs for `formats.write`; safe to call from several threads.

    `importance(tensor)` gives float32 [n_expert, row_length] (one row for a matrix without experts) or None.
    """

    def __init__(self, plan: Plan, importance: Importance | None = None) -> None:
        self.plan = plan
        self.importance = importance or (lambda _: None)
        self.fallen_back: set[GGMLQuantizationType] = set()
        self._trusted: dict[tuple[str, GGMLQuantizationType], bool] = {}
        self._weights: dict[str, np.ndarray | None] = {}
        self._lock = threading.Lock()

    def __call__(self, tensor: PlannedTensor, row: int, rows: np.ndarray, qtype: GGMLQuantizationType) -> np.ndarray:
        """Return rows [row, row + n) of a tensor as uint8 [n, row_bytes] of `qtype`."""
        from .kernels import encode, has_kernel

        if rows.dtype == np.uint8:
            rows = dequantize(GGMLQuantizationType[tensor.source_type], rows)
        weights = self._importance_of(tensor, row)
        if rows.dtype == np.float64 or not has_kernel(qtype) or not self._trust(tensor, rows, qtype, weights):
            return quantize_chunk(qtype, widen(rows), weights)
        return encode(qtype, rows, weights)

    def _importance_of(self, tensor: PlannedTensor, row: int) -> np.ndarray | None:
        with self._lock:
            if tensor.name not in self._weights:
                self._weights[tensor.name] = self.importance(tensor)
            weights = self._weights[tensor.name]
        if weights is None:
            return None
        return weights[row // (tensor.n_rows // len(weights))]

    def _trust(
        self, tensor: PlannedTensor, rows: np.ndarray, qtype: GGMLQuantizationType, weights: np.ndarray | None
    ) -> bool:
        from .kernels import self_check

        if qtype in self.fallen_back:
            return False
        key = (tensor.name, qtype)
        if key not in self._trusted:
            n_rows = max(1, CHECKED_WEIGHTS // tensor.row_length)
            self._trusted[key] = self_check(qtype, widen(rows[:n_rows]), weights)
            if not self._trusted[key]:
                self.fallen_back.add(qtype)
        return self._trusted[key]
