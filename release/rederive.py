"""Every tensor made again from its source, by the plan and the encoders that write files, and held against files.

One pass over the source on threads: each of its rows is read once, encoded once per type, and compared with the bytes
that each file has in its place. Memory is bounded by the slab. Where bytes differ, their errors as weights tell another
rounding of the same weights (another imatrix, another version of llama.cpp) from damage.
"""

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ..formats.floats import widen
from ..quantize.ggml import dequantize
from ..writer.plan import FLOAT_TYPES, Plan, PlannedTensor, Slab, cut_slabs, read_planned
from ..writer.write import SLAB_WEIGHTS, Encode, encode_rows

# Squared errors of a block against those of our encoding. Other roundings of the same weights, by an imatrix or with
# feedback between columns, stay below; an exchanged scale, or another weight's bits, are far above.
DAMAGED = 16.0
# A few rows of a file that differs everywhere are its other rounding too if they are as good as ours.
AS_GOOD = 1.002
# Squared error over squared weights that rounding errors of the comparison itself leave.
NOTHING = 1e-9
# Below this share of an expert's rows, differences are few.
FEW = 16
# A row of the router is an expert's.
ROUTER_SUFFIX = "ffn_gate_inp.weight"


@dataclass
class Differences:
    """What differs in one expert's rows, or in a whole tensor without experts; row numbers start with the expert."""

    n_checked: int = 0
    n_different: int = 0
    n_damaged: int = 0
    worst: float = 0.0
    _different: list[np.ndarray] = field(default_factory=list)
    _damaged: list[np.ndarray] = field(default_factory=list)

    def add(self, n_checked: int, different: np.ndarray, damaged: np.ndarray, worst: float) -> None:
        """Note rows that were looked at, and the numbers of those that differ."""
        self.n_checked += n_checked
        self.n_different += len(different)
        self.n_damaged += len(damaged)
        self._different.append(different.astype(np.int32))
        self._damaged.append(damaged.astype(np.int32))
        self.worst = max(self.worst, worst)

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """The rows that are damaged, else all that differ, as ranges."""
        numbers = np.sort(np.concatenate(self._damaged if self.n_damaged else self._different))
        starts = np.flatnonzero(np.diff(numbers, prepend=-2) > 1)
        stops = np.append(starts[1:], len(numbers)) - 1
        return tuple((int(numbers[a]), int(numbers[b]) + 1) for a, b in zip(starts, stops, strict=True))

    def is_wrong(self, widespread: bool) -> bool:
        """Tell whether this is no other rounding of the same weights; `widespread` when most tensors differ.

        Damage is local: where nearly all rows are equal, those that differ were changed, unless the whole file is of
        another rounding and they are as good as ours.
        """
        few = self.n_different <= max(1, self.n_checked // FEW) < self.n_checked
        if self.n_damaged or not widespread:
            return self.n_damaged > 0 or few
        return few and self.n_checked >= 2 * FEW and self.worst > AS_GOOD


@dataclass
class Compared:
    """One tensor of a file against its source: what was looked at, and what differs, by expert."""

    tensor: PlannedTensor
    qtype: GGMLQuantizationType
    lossless: bool
    experts: dict[int, Differences] = field(default_factory=dict)
    n_bytes: int = 0
    n_by_f16: int = 0

    @property
    def differs(self) -> bool:
        """Whether rows differ that nothing explains."""
        return any(one.n_different for one in self.experts.values())

    @property
    def is_exact(self) -> bool:
        """Whether every byte that was looked at is equal."""
        return not self.differs and not self.n_by_f16


@dataclass(frozen=True)
class Subject:
    """A file to compare: its own plan, and its tensors that the source has in the same shape."""

    plan: Plan
    tensors: Mapping[str, PlannedTensor]


def comparable(plan: Plan, source: Plan) -> dict[str, PlannedTensor]:
    """Return the tensors of a file that its source has under the same name, in the same shape, in one type."""
    ours = {tensor.name: tensor.shape for tensor in source.tensors}
    known = GGMLQuantizationType.__members__
    return {
        tensor.name: tensor
        for tensor in plan.tensors
        if ours.get(tensor.name) == tensor.shape and tensor.source_type in known
    }


def wrong_in(found: Mapping[str, Compared]) -> dict[str, dict[int, Differences]]:
    """Return of a file's tensors those that are wrong, with the experts; of copied weights any difference is."""
    rounded = [one for one in found.values() if one.experts and not one.lossless]
    widespread = sum(one.differs for one in rounded) > len(rounded) / 2
    wrong = {}
    for name, one in found.items():
        experts = {
            at: differences
            for at, differences in sorted(one.experts.items())
            if differences.n_different and (one.lossless or differences.is_wrong(widespread))
        }
        if experts:
            wrong[name] = experts
    return wrong


def slabs_of(source: Plan, n_rows: int | None = None) -> list[Slab]:
    """Return what to look at: everything, or `n_rows` rows that follow each other, at random in each expert."""
    if n_rows is None:
        return cut_slabs(source, SLAB_WEIGHTS)
    chance, slabs = random.SystemRandom(), []
    for index, tensor in enumerate(source.tensors):
        block = tensor.n_rows // max(tensor.n_expert, 1)
        taken = min(n_rows, block)
        for expert in range(0, tensor.n_rows, block):
            start = expert + chance.randrange(block - taken + 1)
            slabs.append(Slab(index, start, start + taken))
    return slabs


def rederive(
    source: Plan,
    subjects: Sequence[Subject],
    encode: Encode,
    slabs: Sequence[Slab],
    n_threads: int = 2,
    advance: Callable[[int], object] = lambda n_weights: None,
) -> list[dict[str, Compared]]:
    """Compare slabs of the source's tensors with those of each subject; return what was found, by tensor.

    `advance` is told the weights that are done. Raises what reading raises.
    """
    found = [_begun(source, subject) for subject in subjects]
    lock = threading.Lock()

    def work(slab: Slab) -> int:
        for compared, start, rows, stop in _compare_slab(source, subjects, found, encode, slab):
            with lock:
                _note(compared, start, stop, rows)
        return (slab.stop - slab.start) * source.tensors[slab.index].row_length

    for n_weights in in_threads(work, slabs, n_threads):
        advance(n_weights)
    return found


def _begun(source: Plan, subject: Subject) -> dict[str, Compared]:
    stored = {tensor.name: tensor.source_type for tensor in source.tensors}
    found = {}
    for name, tensor in subject.tensors.items():
        qtype = GGMLQuantizationType[tensor.source_type]
        lossless = stored[name] == qtype.name or (qtype.name == "F32" and stored[name] in (*FLOAT_TYPES, "F64"))
        found[name] = Compared(tensor, qtype, lossless)
    return found


def in_threads(work: Callable[[Slab], int], slabs: Sequence[Slab], n_threads: int) -> Iterator[int]:
    """Yield results as they come; few slabs wait at a time, and none is begun after a failure or Ctrl-C."""
    waiting: set[Future[int]] = set()
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            for slab in slabs:
                waiting.add(pool.submit(work, slab))
                if len(waiting) > 2 * n_threads:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (one.result() for one in done)
            for one in waiting:
                yield one.result()
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Rows:
    """Rows that differ: their numbers in the tensor, which of them are damaged, and the worst block against ours.

    Those that an F16 file in between explains are counted alone.
    """

    different: np.ndarray
    damaged: np.ndarray
    worst: float
    n_by_f16: int


def _compare_slab(
    source: Plan, subjects: Sequence[Subject], found: Sequence[dict[str, Compared]], encode: Encode, slab: Slab
) -> Iterator[tuple[Compared, int, _Rows | None, int]]:
    """Yield per subject what differs in a slab, None when nothing does."""
    tensor = source.tensors[slab.index]
    rows: np.ndarray | None = None
    encoded: dict[GGMLQuantizationType, np.ndarray] = {}
    for subject, compared in zip(subjects, (each.get(tensor.name) for each in found), strict=True):
        if compared is None:
            continue
        if rows is None:
            rows = read_planned(source.source, tensor, slab.start, slab.stop)
        if compared.qtype not in encoded:
            made = encode_rows(tensor, slab.start, rows, compared.qtype, encode)
            encoded[compared.qtype] = np.ascontiguousarray(made).view(np.uint8).reshape(len(rows), -1)
        ours = encoded[compared.qtype]
        theirs = read_planned(subject.plan.source, compared.tensor, slab.start, slab.stop)
        theirs = np.ascontiguousarray(theirs).view(np.uint8).reshape(len(rows), -1)
        if np.array_equal(ours, theirs):
            yield compared, slab.start, None, slab.stop
            continue
        at = np.flatnonzero((ours != theirs).any(axis=1))
        by_f16 = _by_way_of_f16(tensor, slab, rows, theirs, at, compared.qtype, encode)
        at = at[~by_f16]
        damaged, worst = _judge(_weights(tensor, rows[at]), ours[at], theirs[at], compared.qtype)
        found_here = _Rows(slab.start + at, slab.start + at[damaged], worst, int(by_f16.sum()))
        yield compared, slab.start, found_here, slab.stop


def _by_way_of_f16(
    tensor: PlannedTensor,
    slab: Slab,
    rows: np.ndarray,
    theirs: np.ndarray,
    at: np.ndarray,
    qtype: GGMLQuantizationType,
    encode: Encode,
) -> np.ndarray:
    """Tell which of the rows `at` were made from weights that an F16 file had rounded before: most of 2023 were.

    Only weights below 6e-5 are rounded there, so that few rows differ by it.
    """
    if tensor.source_type not in ("BF16", "F32") or qtype in FLOAT_TYPES.values() or 2 * len(at) > len(rows):
        return np.zeros(len(at), bool)
    with np.errstate(over="ignore"):
        halves = widen(rows[at]).astype(np.float16)
    made = np.ascontiguousarray(encode(tensor, slab.start, halves, qtype)).view(np.uint8).reshape(len(at), -1)
    return (made == theirs[at]).all(axis=1)


def _weights(tensor: PlannedTensor, rows: np.ndarray) -> np.ndarray:
    return dequantize(GGMLQuantizationType[tensor.source_type], rows) if rows.dtype == np.uint8 else widen(rows)


def _judge(
    weights: np.ndarray, ours: np.ndarray, theirs: np.ndarray, qtype: GGMLQuantizationType
) -> tuple[np.ndarray, float]:
    """Return which rows have a block that is damaged, and the worst block's squared error over that of ours."""
    size = max(GGML_QUANT_SIZES[qtype][0], 32)
    size = size if weights.shape[1] % size == 0 else weights.shape[1]

    def squares(values: np.ndarray) -> np.ndarray:
        blocks = values.reshape(len(values), values.shape[1] // size, size)
        return np.einsum("rbw,rbw->rb", blocks, blocks, dtype=np.float64)

    with np.errstate(all="ignore"):
        theirs_error = squares(dequantize(qtype, theirs) - weights)
        ours_error = squares(dequantize(qtype, ours) - weights) + NOTHING * squares(weights)
        ratio = theirs_error / np.maximum(ours_error, 1e-30)
    ratio[~np.isfinite(ratio)] = np.inf
    return np.asarray((ratio > DAMAGED).any(axis=1)), float(ratio.max(initial=0.0))


def _note(compared: Compared, start: int, stop: int, rows: _Rows | None) -> None:
    """Add what a slab, which never reaches over two experts, was found to hold."""
    tensor = compared.tensor
    by_row = tensor.name.endswith(ROUTER_SUFFIX)
    block = 1 if by_row else tensor.n_rows // max(tensor.n_expert, 1)
    block_size, type_size = GGML_QUANT_SIZES[compared.qtype]
    compared.n_by_f16 += rows.n_by_f16 if rows else 0
    compared.n_bytes += (stop - start) * tensor.row_length // block_size * type_size
    for expert in range(start // block, -(-stop // block)):
        one = compared.experts.setdefault(expert, Differences())
        first, last = max(start, expert * block), min(stop, (expert + 1) * block)
        if rows is None:
            one.n_checked += last - first
            continue
        here, damaged = ((at[(at >= first) & (at < last)] - expert * block) for at in (rows.different, rows.damaged))
        one.add(last - first, here, damaged, rows.worst if len(here) else 0.0)
