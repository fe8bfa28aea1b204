"""Rows with error feedback, or without where that does better on inputs that were held out."""

from dataclasses import dataclass

import gguf
import numpy as np

from ..ggml import dequantize
from . import SWEEPS, round_rows
from .calibration import Rounder


@dataclass(frozen=True)
class Outcome:
    """What feedback did to rows: how many there were, how many stayed plain, and squared errors of their outputs.

    `plain` and `chosen` are sums over inputs that are neither in the moments nor chose between the two, of plain
    rounding and of what was written.
    """

    n_rows: int
    n_plain: int
    plain: float
    chosen: float

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(
            self.n_rows + other.n_rows,
            self.n_plain + other.n_plain,
            self.plain + other.plain,
            self.chosen + other.chosen,
        )

    @property
    def fell_back(self) -> bool:
        """Whether the tensor kept plain rounding for the most part."""
        return 2 * self.n_plain > self.n_rows


NOTHING = Outcome(0, 0, 0.0, 0.0)


def fed_back(
    qtype: gguf.GGMLQuantizationType, rows: np.ndarray, rounder: Rounder, plain: np.ndarray, thorough: bool = False
) -> tuple[np.ndarray, Outcome]:
    """Encode rows with error feedback, uint8 [n, row_bytes]; `plain` are the same rows rounded without.

    A row keeps plain rounding where its outputs on half of the held-out inputs are then nearer to the exact ones; the
    other half tells what that was worth. `thorough` sweeps over the levels of long rows, too.
    """
    assert rounder.factor is not None
    encoded, kept = round_rows(qtype, rows, rounder.factor, SWEEPS if thorough else None)
    if not len(rounder.sample):
        encoded[kept] = plain[kept]
        return encoded, Outcome(len(rows), int(kept.sum()), 0.0, 0.0)
    from .held_out import output_errors

    before, after = (
        [output_errors(rows, decoded, rounder.sample[part::2]) for part in (0, 1)]
        for decoded in (dequantize(qtype, plain), dequantize(qtype, encoded))
    )
    kept |= ~(after[0] <= before[0])
    encoded[kept] = plain[kept]
    chosen = np.where(kept, before[1], after[1])
    return encoded, Outcome(len(rows), int(kept.sum()), float(before[1].sum()), float(chosen.sum()))
