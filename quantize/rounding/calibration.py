"""The moments of a model at work: for each tensor and type that by which its rows are rounded.

Factors are made when the first rows of a matrix come, shared by the types and tensors that take the same input, and
forgotten when newer ones need the room.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import gguf
import numpy as np

from ...formats.moments import Moment, MomentsFile
from ...writer.plan import Plan, PlannedTensor, read_planned
from ..overrides import KvOverride
from . import can_round
from .factor import Factor, factor_of

MOST_BYTES = 2**29


@dataclass(frozen=True)
class Rounder:
    """What rounds rows of one expert: the factor, what an imatrix would say, and inputs to check with.

    Without a factor (the type, or the moments, allow no feedback) the importance alone counts.
    """

    factor: Factor | None
    importance: np.ndarray | None
    sample: np.ndarray

    @property
    def n_bytes(self) -> int:
        """The memory that it takes."""
        return self.sample.nbytes + (self.factor.n_bytes if self.factor else 0)


class Calibration:
    """Rounders for the tensors of a plan; safe to use from several threads."""

    def __init__(self, moments: MomentsFile, names: Mapping[str, str] | None = None) -> None:
        """`names` are those in the source of tensors that are called otherwise in the plan."""
        self.moments = moments
        self._names = names or {}
        self._rounders: OrderedDict[tuple[str, int, int], Future[Rounder]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def names(self) -> frozenset[str]:
        """The tensors that it knows."""
        return self.moments.names

    def metadata_overrides(self) -> list[KvOverride]:
        """Return the quantize.* keys that say how a file was rounded."""
        info = self.moments.info
        return [
            KvOverride("quantize.rounding", "calibrated"),
            KvOverride("quantize.moments.model", info.model),
            KvOverride("quantize.moments.text", info.text),
            KvOverride("quantize.moments.tokens", self.moments.n_tokens),
        ]

    def rounder(self, tensor: PlannedTensor, row: int, qtype: gguf.GGMLQuantizationType) -> Rounder | None:
        """Return what rounds the rows of a tensor around `row`; None where no moments are known."""
        entry = self.moments.entry(self._names.get(tensor.name, tensor.name), tensor.shape)
        if entry is None:
            return None
        expert = row // (tensor.n_rows // entry.n_expert)
        block = gguf.GGML_QUANT_SIZES[qtype][0] if can_round(qtype) else 0
        key = (entry.name, expert, block)
        with self._lock:
            promised = self._rounders.get(key)
            mine = promised is None
            if promised is None:
                promised = self._rounders[key] = Future()
            self._rounders.move_to_end(key)
        if mine:
            try:
                promised.set_result(make_rounder(self.moments.read(entry, expert), block))
            except BaseException as error:
                promised.set_exception(error)
            self._forget()
        return promised.result()

    def _forget(self) -> None:
        """Drop the rounders that were not asked for longest, while they take too much memory."""
        with self._lock:
            total = 0
            for key, promised in reversed(list(self._rounders.items())):
                if promised.done() and promised.exception() is None:
                    total += promised.result().n_bytes
                    if total > MOST_BYTES:
                        del self._rounders[key]


def make_rounder(moment: Moment, block: int) -> Rounder:
    """Factor the moments of an input for types of this block size; 0 asks for the importance alone."""
    fits = block and all(len(h) % block == 0 for h in moment.blocks) and not is_diagonal(moment)
    sample = moment.sample[moment.sample.any(axis=1)]
    return Rounder(factor_of(moment, block) if fits else None, importance_of(moment), sample)


def importance_of(moment: Moment) -> np.ndarray | None:
    """Return what an imatrix would say of the columns, float32 [row_length]; None when they count alike."""
    diagonal = moment.diagonal
    if moment.weight <= 0 or (diagonal == diagonal[0]).all():
        return None
    return diagonal / np.float32(moment.weight)


def is_diagonal(moment: Moment) -> bool:
    """Tell whether no two columns are correlated: there is nothing to feed back then."""
    return not any((h != np.diag(h.diagonal())).any() for h in moment.blocks)


def check_model(moments: MomentsFile, plan: Plan) -> None:
    """Raise MomentsError when moments are not those of the model that a plan writes."""
    from ...formats.floats import widen
    from ...formats.moments import is_exact, model_digest

    exact = [
        (tensor.name, widen(read_planned(plan.source, tensor, 0, tensor.n_rows)))
        for tensor in plan.tensors
        if is_exact(tensor.name, tensor.shape)
    ]
    shapes = [(tensor.name, tensor.shape) for tensor in plan.tensors]
    moments.check_model(model_digest(plan.architecture, shapes, exact))
