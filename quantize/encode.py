"""Rows to the bytes of a quantized type: our kernels where they have proven themselves, else llama.cpp's encoder.

At the first rows of each tensor the kernel is compared with llama.cpp's own encoder; if one byte differs (a
library compiled with other arithmetic), that type falls back to it, and `fallen_back` says so.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
from gguf.constants import GGMLQuantizationType

from ..formats.floats import widen
from ..models.tensor_roles import role_of
from ..writer.plan import PlannedTensor
from .choices import TypeChoice
from .ggml import dequantize, quantize_chunk, row_bytes
from .rounding.calibration import Calibration
from .rounding.outcome import NOTHING, Outcome, fed_back

CHECKED_WEIGHTS = 16384
Importance = Callable[[PlannedTensor], np.ndarray | None]


def relative_errors(encoder: "Encoder", choices: Iterable[TypeChoice]) -> dict[str, float]:
    """Return per role the root of the squared error over the squared weights, for tensors that were encoded."""
    sums: dict[str, np.ndarray] = {}
    for choice in choices:
        key = (choice.name, choice.qtype)
        if key in encoder.errors:
            role = role_of(choice.name).value
            sums[role] = sums.get(role, np.zeros(2)) + encoder.errors[key]
    return {role: float(np.sqrt(error / max(square, 1e-300))) for role, (error, square) in sums.items()}


class Encoder:
    """Encodes slabs for `writer.write`; safe to call from several threads.

    `importance(tensor)` gives float32 [n_expert, row_length] (one row for a matrix without experts) or None.
    `calibration`, where it knows a tensor, takes its place, and rounds so that errors cancel in the output.
    With `thorough` rows of any length are gone through again.
    With `measure`, `errors` holds per (tensor, type) the sums of squared errors and of squares; `outcomes` holds what
    feedback did.
    """

    def __init__(
        self,
        importance: Importance | None = None,
        measure: bool = False,
        calibration: Calibration | None = None,
        thorough: bool = False,
    ) -> None:
        self.calibration = calibration
        self.importance = importance or (lambda _: None)
        self.measure = measure
        self.thorough = thorough
        self.fallen_back: set[GGMLQuantizationType] = set()
        self.errors: dict[tuple[str, GGMLQuantizationType], np.ndarray] = defaultdict(lambda: np.zeros(2))
        self.outcomes: dict[tuple[str, GGMLQuantizationType], Outcome] = {}
        self._trusted: dict[tuple[str, GGMLQuantizationType], bool] = {}
        self._weights: dict[str, np.ndarray | None] = {}
        self._lock = threading.Lock()

    def __call__(self, tensor: PlannedTensor, row: int, rows: np.ndarray, qtype: GGMLQuantizationType) -> np.ndarray:
        """Return rows [row, row + n) of a tensor as uint8 [n, row_bytes] of `qtype`."""
        if rows.dtype == np.uint8:
            rows = dequantize(GGMLQuantizationType[tensor.source_type], rows)
        encoded = self._encode(tensor, row, rows, qtype)
        if self.measure:
            from .kernels import measure

            sums = measure(qtype, rows, encoded)
            with self._lock:
                self.errors[tensor.name, qtype] += sums
        return encoded

    def _encode(self, tensor: PlannedTensor, row: int, rows: np.ndarray, qtype: GGMLQuantizationType) -> np.ndarray:
        rounder = self.calibration.rounder(tensor, row, qtype) if self.calibration else None
        if rounder is None:
            return self._rounded_alone(tensor, rows, qtype, self.importance_of(tensor, row))
        plain = self._rounded_alone(tensor, rows, qtype, rounder.importance)
        if rounder.factor is None:
            return plain
        rows = widen(rows) if rows.dtype == np.float64 else rows
        encoded, outcome = fed_back(qtype, rows, rounder, plain, self.thorough)
        with self._lock:
            before = self.outcomes.get((tensor.name, qtype), NOTHING)
            self.outcomes[tensor.name, qtype] = before + outcome
        return encoded

    def _rounded_alone(
        self, tensor: PlannedTensor, rows: np.ndarray, qtype: GGMLQuantizationType, weights: np.ndarray | None
    ) -> np.ndarray:
        """Encode rows as llama.cpp does, each weight to the nearest level."""
        from .kernels import encode, has_kernel

        if rows.dtype == np.float64 or not has_kernel(qtype) or not self._trust(tensor, rows, qtype, weights):
            return quantize_chunk(qtype, widen(rows), weights)
        encoded = np.empty((len(rows), row_bytes(qtype, tensor.row_length)), np.uint8)
        encode(qtype, rows, encoded, weights)
        return encoded

    def importance_of(self, tensor: PlannedTensor, row: int) -> np.ndarray | None:
        """Return what the importance matrix says of the columns of the expert that has this row."""
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
