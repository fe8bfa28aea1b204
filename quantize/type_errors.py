"""How far a tensor's outputs are off in each type: some of its rows, rounded as `quantize` would round all of them.

With moments the outputs are those on inputs that the moments left out, and rounding is calibrated; with an importance
matrix columns count by it; without either all columns count alike.
"""

from collections.abc import Iterable

import numpy as np
from gguf import GGMLQuantizationType

from ..formats.floats import widen
from ..formats.source import TensorSource
from ..models.tensor_types import row_fits
from ..writer.plan import PlannedTensor, read_planned
from .encode import Encoder
from .ggml import dequantize

# Enough to tell types apart: the same rows, and the same inputs, are used for all of them.
ROWS, EXPERTS = 32, 2


def type_errors(
    source: TensorSource, tensor: PlannedTensor, qtypes: Iterable[GGMLQuantizationType], encoder: Encoder
) -> dict[str, float]:
    """Return by type the squared error of the outputs over the squared outputs, from ROWS rows of each expert.

    At most EXPERTS experts are looked at. Types that do not fit the rows are left out.
    """
    fitting = [qtype for qtype in qtypes if row_fits(tensor.row_length, qtype)]
    n_expert = max(tensor.n_expert, 1)
    n_rows = tensor.n_rows // n_expert
    errors, outputs = dict.fromkeys(fitting, 0.0), 0.0
    for expert in _spread(n_expert, EXPERTS):
        first = expert * n_rows
        rows = np.concatenate([read_planned(source, tensor, first + i, first + i + 1) for i in _spread(n_rows, ROWS)])
        exact = dequantize(GGMLQuantizationType[tensor.source_type], rows) if rows.dtype == np.uint8 else widen(rows)
        outputs += _squared(exact, tensor, first, encoder)
        for qtype in fitting:
            encoded = encoder(tensor, first, exact, qtype)
            errors[qtype] += _squared(dequantize(qtype, encoded) - exact, tensor, first, encoder)
    return {qtype.name: error / outputs if outputs > 0 else 0.0 for qtype, error in errors.items()}


def _spread(n: int, most: int) -> list[int]:
    """Return at most `most` of n numbers, evenly spread."""
    return [i * n // min(n, most) for i in range(min(n, most))]


def _squared(rows: np.ndarray, tensor: PlannedTensor, row: int, encoder: Encoder) -> float:
    """Return the squared outputs of rows, float32 [n, row_length], on the inputs that are known."""
    rounder = encoder.calibration.rounder(tensor, row, GGMLQuantizationType.Q8_0) if encoder.calibration else None
    if rounder is not None and len(rounder.sample):
        return float(np.square(rows @ rounder.sample.T, dtype=np.float64).sum())
    weights = rounder.importance if rounder else encoder.importance_of(tensor, row)
    squares = np.square(rows, dtype=np.float64)
    return float((squares if weights is None else squares * weights).sum())
