"""What is behind tensors that differ: which bytes, which expert's weights lie in whose place, whose router row changed.

Comparisons and both plans come in; problems that name the place go out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGMLQuantizationType

from ..formats.floats import widen
from ..formats.gguf_file import tensor_bytes
from ..formats.words import count
from ..quantize.ggml import dequantize
from ..writer.gguf_source import GgufSource
from ..writer.plan import Plan, PlannedTensor, read_planned
from ..writer.write import Encode, encode_rows, locate
from .problems import Kind, Problem, TensorCounts, shown
from .rederive import ROUTER_SUFFIX, Compared, Differences, wrong_in

# Rows that tell one expert's weights from another's.
LOOKED_AT = 4
# Squared error over squared weights below which two encodings are of the same weights; of others it is about 2.
SAME_WEIGHTS = 0.5


@dataclass(frozen=True)
class Blame:
    """Explains the tensors of one file, which `source` should give."""

    source: Plan
    file: Plan
    encode: Encode

    def problems(self, found: dict[str, Compared], other_bytes_are_wrong: bool) -> Iterator[Problem]:
        """Yield a problem for each expert or tensor that is wrong, or, if so asked, has other bytes."""
        wrong = wrong_in(found)
        for name, compared in found.items():
            if name in wrong:
                for expert, one in wrong[name].items():
                    yield self._wrong(compared, expert, one)
            elif other_bytes_are_wrong and compared.differs:
                yield _other_bytes(compared)

    def _wrong(self, compared: Compared, expert: int, one: Differences) -> Problem:
        tensor, rows = compared.tensor, one.rows
        if tensor.name.endswith(ROUTER_SUFFIX):
            whose = self._whose_router(compared, expert)
            what = f"is that of expert {whose}" if whose is not None else "is not the source's"
            message = f"{tensor.name}: the router's row of expert {expert} {what}"
            return Problem(Kind.ROUTER, message, tensor.name, expert, rows)
        number = expert if tensor.n_expert else None
        where = f"{tensor.name}, expert {expert}" if tensor.n_expert else tensor.name
        if tensor.n_expert and one.n_different > one.n_checked // 2:
            whose, exactly = self._whose(compared, expert)
            if whose is not None:
                what = "the bytes" if exactly else "the weights, rounded otherwise,"
                message = f"{tensor.name}: in the place of expert {expert} are {what} of expert {whose}"
                return Problem(Kind.EXPERT, message, tensor.name, number, rows)
        n_wrong = one.n_damaged or one.n_different
        message = (
            f"{where}: {shown(rows)} of {one.n_checked} {'is' if n_wrong == 1 else 'are'} not the source's weights"
        )
        if place := self._first_byte(compared, expert, rows[0][0]):
            message += f", first at {place}"
        return Problem(Kind.WRONG, message, tensor.name, number, rows)

    def _whose(self, compared: Compared, expert: int) -> tuple[int | None, bool]:
        """Return whose weights lie in an expert's place, and whether the bytes are those too; None for nobody's."""
        tensor, ours = compared.tensor, self._ours(compared)
        block = tensor.n_rows // tensor.n_expert
        last = min(LOOKED_AT, block)
        first = read_planned(self.file.source, tensor, expert * block, expert * block + last)
        theirs = _as_weights(tensor, first)
        best: tuple[float, int, bool] = (SAME_WEIGHTS, -1, False)
        for other in range(tensor.n_expert):
            rows = read_planned(self.source.source, ours, other * block, other * block + last)
            weights = _as_weights(ours, rows)
            error = float(np.square(theirs - weights).sum() / max(float(np.square(weights).sum()), 1e-30))
            if other != expert and error < best[0]:
                made = encode_rows(ours, other * block, rows, compared.qtype, self.encode)
                best = (error, other, made.tobytes() == np.ascontiguousarray(first).tobytes())
        return (best[1], best[2]) if best[1] >= 0 else (None, False)

    def _whose_router(self, compared: Compared, expert: int) -> int | None:
        ours = self._ours(compared)
        theirs = _as_weights(compared.tensor, read_planned(self.file.source, compared.tensor, expert, expert + 1))
        rows = _as_weights(ours, read_planned(self.source.source, ours, 0, ours.n_rows))
        same = [other for other in range(len(rows)) if other != expert and np.array_equal(rows[other], theirs[0])]
        return same[0] if same else None

    def _first_byte(self, compared: Compared, expert: int, row: int) -> str:
        """Return where in which file the first byte lies that differs in a row of an expert."""
        source, tensor, ours = self.file.source, compared.tensor, self._ours(compared)
        if not isinstance(source, GgufSource):
            return ""
        row += expert * (tensor.n_rows // tensor.n_expert) if tensor.n_expert else 0
        theirs = np.frombuffer(read_planned(source, tensor, row, row + 1).tobytes(), np.uint8)
        made = encode_rows(ours, row, read_planned(self.source.source, ours, row, row + 1), compared.qtype, self.encode)
        different = np.flatnonzero(theirs != np.frombuffer(made.tobytes(), np.uint8))
        name, piece_row = locate(tensor, row)
        stored = source.file.tensors[name]
        at = stored.offset + piece_row * tensor_bytes(stored.shape[:1], stored.qtype) + int(different[0])
        return f"byte {at} of {stored.path.name}"

    def _ours(self, compared: Compared) -> PlannedTensor:
        return next(tensor for tensor in self.source.tensors if tensor.name == compared.tensor.name)


def counts_of(found: dict[str, Compared], n_tensors: int) -> TensorCounts:
    """Count a file's tensors by how they compare; those that were not looked at, or could not be, are unchecked."""
    looked = [one for one in found.values() if one.experts]
    exact = sum(one.is_exact for one in looked)
    wrong = len(wrong_in(found))
    return TensorCounts(exact, len(looked) - exact - wrong, wrong, n_tensors - len(looked))


def _other_bytes(compared: Compared) -> Problem:
    tensor = compared.tensor
    n_different = sum(one.n_different for one in compared.experts.values())
    n_checked = sum(one.n_checked for one in compared.experts.values())
    block = tensor.n_rows // max(tensor.n_expert, 1)
    rows = tuple(
        (start + expert * block, stop + expert * block)
        for expert, one in sorted(compared.experts.items())
        if one.n_different
        for start, stop in one.rows
    )
    message = (
        f"{tensor.name}: {count(n_different, 'row')} of {n_checked} with other bytes of {compared.qtype.name}; "
        "rounded with another importance matrix, or by another version"
    )
    return Problem(Kind.OTHER_BYTES, message, tensor.name, None, rows)


def _as_weights(tensor: PlannedTensor, rows: np.ndarray) -> np.ndarray:
    return dequantize(GGMLQuantizationType[tensor.source_type], rows) if rows.dtype == np.uint8 else widen(rows)
