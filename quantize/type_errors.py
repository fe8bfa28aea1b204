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

_T = GGMLQuantizationType
# Enough to tell types apart: the same rows, and the same inputs, are used for all of them.
ROWS, EXPERTS = 32, 2
# Within a family fewer bits are never better: what seems so is one unusual input.
FAMILIES = (
    (_T.Q8_0, _T.Q6_K, _T.Q5_K, _T.Q4_K, _T.Q3_K, _T.Q2_K),
    (_T.Q8_0, _T.Q5_0, _T.Q4_0),
    (_T.Q5_1, _T.Q4_1),
)


def type_errors(
    source: TensorSource, tensor: PlannedTensor, qtypes: Iterable[GGMLQuantizationType], encoder: Encoder
) -> dict[str, float]:
    """Return by type the squared error of the outputs over the squared outputs, from ROWS rows of each expert.

    Each input counts alike, however large: the next norm makes them so, and a few inputs of some layers are hundreds of
    times as large as all others. At most EXPERTS experts are looked at. Types that do not fit the rows are left out.
    """
    fitting = [qtype for qtype in qtypes if row_fits(tensor.row_length, qtype)]
    n_expert = max(tensor.n_expert, 1)
    n_rows = tensor.n_rows // n_expert
    errors: dict[GGMLQuantizationType, list[np.ndarray]] = {qtype: [] for qtype in fitting}
    for expert in _spread(n_expert, EXPERTS):
        first = expert * n_rows
        rows = np.concatenate([read_planned(source, tensor, first + i, first + i + 1) for i in _spread(n_rows, ROWS)])
        exact = dequantize(_T[tensor.source_type], rows) if rows.dtype == np.uint8 else widen(rows)
        outputs = _squared(exact, tensor, first, encoder)
        for qtype in fitting:
            wrong = dequantize(qtype, encoder(tensor, first, exact, qtype)) - exact
            squared = _squared(wrong, tensor, first, encoder)
            errors[qtype].append(squared[outputs > 0] / outputs[outputs > 0])
    found = {qtype: np.concatenate(parts) for qtype, parts in errors.items()}
    return _monotonous({qtype: float(ratios.mean()) if len(ratios) else 0.0 for qtype, ratios in found.items()})


def _monotonous(errors: dict[GGMLQuantizationType, float]) -> dict[str, float]:
    for family in FAMILIES:
        least = 0.0
        for qtype in family:
            if qtype in errors:
                least = errors[qtype] = max(errors[qtype], least)
    return {qtype.name: error for qtype, error in errors.items()}


def _spread(n: int, most: int) -> list[int]:
    """Return at most `most` of n numbers, evenly spread."""
    return [i * n // min(n, most) for i in range(min(n, most))]


def _squared(rows: np.ndarray, tensor: PlannedTensor, row: int, encoder: Encoder) -> np.ndarray:
    """Return the squared outputs of rows, float32 [n, row_length], for each input that is known, or for all at once."""
    rounder = encoder.calibration.rounder(tensor, row, _T.Q8_0) if encoder.calibration else None
    if rounder is not None and len(rounder.sample):
        return np.square(rows @ rounder.sample.T, dtype=np.float64).sum(axis=0)
    weights = rounder.importance if rounder else encoder.importance_of(tensor, row)
    squares = np.square(rows, dtype=np.float64)
    return (squares if weights is None else squares * weights).sum(keepdims=True).reshape(1)
