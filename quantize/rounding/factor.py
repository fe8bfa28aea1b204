"""From the moments of a matrix's input to what its rounding needs: an order of columns and feedback coefficients.

With H = R^T R, R lower triangular in the order of rounding, the squared error of a row's outputs is

    e^T H e = sum over j of R_jj^2 (e_j + sum over k < j of R_jk / R_jj e_k)^2

so before column j is rounded, the errors e_k of the columns before it times R_jk / R_jj are added to it: what rounding
then leaves counts R_jj^2. (The recursion of GPTQ, Frantar et al. 2022, without the inverse of H.)
"""

from dataclasses import dataclass

import numpy as np

from ...formats.moments import Moment
from .cholesky import factorize, pack_coefficients

DAMPING = 0.01
SHRINKAGE = 0.3


@dataclass(frozen=True)
class Segment:
    """Columns [start, stop) whose errors are fed to each other.

    `order` int32: per position its column within its block of the type, then the blocks in the order of their turn.
    `coefficients` float32: per panel of 8 positions at p the rows 0 .. p + 7 of R_jk / R_jj, [p + 8, 8].
    `costs` float32 [n]: R_jj^2, what a column's error counts when the scales are searched.
    `hessian` float32 [n, n]: H by positions.
    """

    start: int
    stop: int
    order: np.ndarray
    coefficients: np.ndarray
    costs: np.ndarray
    hessian: np.ndarray


@dataclass(frozen=True)
class Factor:
    """What rounds the rows of one matrix, for one size of blocks."""

    segments: tuple[Segment, ...]

    @property
    def n_bytes(self) -> int:
        """The memory that it takes."""
        return sum(segment.coefficients.nbytes + segment.hessian.nbytes for segment in self.segments)


def factor_of(moment: Moment, block: int, damping: float = DAMPING, shrinkage: float = SHRINKAGE) -> Factor:
    """Factor the moments of an input for a type with blocks of `block` columns.

    H becomes H + damping * mean(diagonal) * I, after its correlations were shrunk by n / (n + shrinkage * n_tokens), n
    the columns: the fewer tokens they come from, the less they count, down to the diagonal alone.
    """
    segments, start = [], 0
    for h in moment.blocks:
        kept = moment.n_tokens * shrinkage / (moment.n_tokens * shrinkage + len(h))
        segments.append(_segment(start, h, block, kept, damping))
        start += len(h)
    return Factor(tuple(segments))


def _segment(start: int, h: np.ndarray, block: int, kept: float, damping: float) -> Segment:
    n = len(h)
    diagonal = h.diagonal().astype(np.float64)
    order, blocks = column_order(diagonal, block)
    positions = (order + np.repeat(blocks, block) * block)[::-1]
    lower, hessian = None, h
    while lower is None:
        matrix = h[np.ix_(positions, positions)].astype(np.float64) * kept
        np.fill_diagonal(matrix, diagonal[positions] + (damping * diagonal.mean() or 1.0))
        hessian = np.ascontiguousarray(matrix[::-1, ::-1], np.float32)
        lower = factorize(matrix)
        kept, damping = kept * 0.9, damping * 2  # correlations of broken sums: towards the diagonal until it works
    coefficients = np.empty(n * (n + 8) // 2, np.float32)
    pack_coefficients(lower, coefficients)
    costs = np.empty(n, np.float32)
    costs[positions] = lower.diagonal() ** 2
    both = np.concatenate([order, blocks]).astype(np.int32)
    return Segment(start, start + n, both, coefficients, costs, hessian)


def column_order(diagonal: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return per position its column within its block, and the blocks: both by falling importance."""
    by_block = diagonal.reshape(-1, block)
    blocks = np.argsort(-by_block.sum(1), kind="stable")
    order = np.argsort(-by_block, axis=1, kind="stable")[blocks].reshape(-1)
    return order, blocks
