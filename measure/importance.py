"""What an importance matrix is made of: inputs of matrices in, sums of their squares and counts per expert out.

As llama-imatrix counts (IMatrixCollector of tools/imatrix/imatrix.cpp): in single precision and in the same order, so
that sums are equal to the bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..formats.errors import EngineError
from ..runner.products import Input

# What llama-imatrix collects of: the layers' matrices, and the output's on request.
LAYERS, OUTPUT = "blk.", "output.weight"


@dataclass
class Sums:
    """Sums of squared inputs, float32 [n, row_length], and of how many inputs, int64 [n]; n is the experts, or 1.

    `apart` counts those of experts that the model itself would not have chosen.
    """

    values: np.ndarray
    counts: np.ndarray
    apart: np.ndarray

    @classmethod
    def empty(cls, n: int, row_length: int) -> "Sums":
        """Return sums over nothing."""
        return cls(np.zeros((n, row_length), np.float32), np.zeros(n, np.int64), np.zeros(n, np.int64))


@dataclass
class Importance:
    """Collects sums of the matrices' inputs; `add` takes them as they come.

    Of a token's experts the first `n_own` are those that the model chooses by itself. Where more are used, the others
    count for experts of which `needs` says so, apart from the rest; the model's own are then not counted again.
    """

    sums: dict[str, Sums] = field(default_factory=dict)
    n_own: int | None = None
    needs: Callable[[str], np.ndarray] | None = None
    where: str = ""

    def add(self, given: Input) -> None:
        """Add the squares of an input. Raises EngineError when some of it is not finite."""
        if given.experts is None:
            if self.needs is None:
                self._add_dense(given)
        elif self.needs is None:
            self._add_experts(given)
        else:
            self._add_apart(given, self.needs(given.weight))

    def _add_dense(self, given: Input) -> None:
        found = self._of(given.weight, len(given.x), given.x.shape[-1])
        for number, x in enumerate(given.x):
            self._add_squares(found, number, x, given.weight)
        found.counts += given.x.shape[1]

    def _add_experts(self, given: Input) -> None:
        assert given.experts is not None
        self._add_chosen(given, given.experts)

    def _add_apart(self, given: Input, needy: np.ndarray) -> None:
        assert given.experts is not None
        others = given.experts.copy()
        others[:, : self.n_own] = -1
        others[~needy[others]] = -1
        found = self._add_chosen(given, others)
        found.apart += np.bincount(others[others >= 0], minlength=given.n_expert)

    def _add_chosen(self, given: Input, experts: np.ndarray) -> Sums:
        """Add the inputs that went to each expert; -1 is none."""
        found = self._of(given.weight, given.n_expert, given.x.shape[-1])
        for expert in range(given.n_expert):
            # llama-imatrix goes through the first choices of all tokens, then through the second ones.
            slot, token = np.nonzero(np.equal(experts.T, expert))
            if len(token):
                rows = given.x[token, slot if given.x.shape[1] > 1 else 0]
                self._add_squares(found, expert, rows, given.weight)
                found.counts[expert] += len(token)
        return found

    def _add_squares(self, found: Sums, number: int, rows: np.ndarray, weight: str) -> None:
        """Add squares of rows one after the other to the sums, as a loop in C would."""
        terms = np.empty((len(rows) + 1, rows.shape[1]), np.float32)
        terms[0] = found.values[number]
        np.multiply(rows, rows, out=terms[1:])
        total = np.add.reduce(terms, axis=0)
        self._demand_finite(total, weight)
        found.values[number] = total

    def _of(self, name: str, n: int, row_length: int) -> Sums:
        found = self.sums.get(name)
        if found is None:
            found = self.sums[name] = Sums.empty(n, row_length)
        return found

    def _demand_finite(self, added: np.ndarray, weight: str) -> None:
        if not np.isfinite(added).all():
            raise EngineError(
                f"what {weight} is multiplied by is NaN or infinite {self.where}, and nothing before it is; the "
                "weights before it are damaged or out of F16's range: convert again, or quantize from BF16"
            )


def by_weight(sums: Mapping[str, Sums], shared: Mapping[str, list[str]]) -> dict[str, Sums]:
    """Return the sums under the names of all matrices that take an input."""
    return {name: found for leader, found in sums.items() for name in shared.get(leader, [leader])}


def wanted(process_output: bool = False) -> Callable[[str], bool]:
    """Return what tells the matrices that an importance matrix is about."""
    return lambda name: name.startswith(LAYERS) or (process_output and name == OUTPUT)
