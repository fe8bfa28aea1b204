"""Whether feedback helped a row: the squared error of its outputs on inputs that are not in its moments."""

import numpy as np

from ...formats.floats import widen
from ..kernels.jit import kernel
from ..kernels.vectors import LANES, load, multiply_add, splat, store


def output_errors(rows: np.ndarray, decoded: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Return the sum over inputs of the squared error of each row's output, float64 [n].

    `rows` are the exact weights [n, row_length], `decoded` the same after rounding, `sample` float32 [., row_length].
    """
    difference = decoded - widen(rows)
    n_groups = -(-len(sample) // LANES)
    lanes = np.zeros((n_groups * LANES, difference.shape[1]), np.float32)
    lanes[: len(sample)] = sample
    lanes = np.ascontiguousarray(lanes.reshape(n_groups, LANES, difference.shape[1]).transpose(0, 2, 1))
    errors = np.zeros(len(rows))
    squared_outputs(difference, lanes.reshape(-1), n_groups, errors)
    return errors


@kernel
def squared_outputs(rows, sample, n_groups, out):
    """Add to `out` the squares of each row's products with the inputs, an input per lane."""
    n_columns = rows.shape[1]
    outputs = np.empty(LANES, np.float32)
    for row in range(len(rows)):
        for group in range(n_groups):
            total = splat(0, LANES)
            for column in range(n_columns):
                inputs = load(sample, (group * n_columns + column) * LANES, LANES)
                total = multiply_add(inputs, rows[row, column], total)
            store(outputs, 0, total)
            for lane in range(LANES):
                out[row] += outputs[lane] * outputs[lane]
