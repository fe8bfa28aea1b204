"""Weights that are NaN or infinite, in a file of any types: llama.cpp turns some of them into numbers without a word.

A file's plan comes in; its first such weight of each tensor goes out.
"""

from collections.abc import Callable, Iterator

import numpy as np
from gguf.constants import GGMLQuantizationType

from ..formats.floats import first_nonfinite
from ..quantize.ggml import dequantize
from ..writer.plan import Plan, Slab, cut_slabs, read_planned
from ..writer.write import SLAB_WEIGHTS
from .problems import Kind, Problem
from .rederive import in_threads


def nonfinite_problems(
    plan: Plan, n_threads: int = 2, advance: Callable[[int], object] = lambda n_weights: None
) -> Iterator[Problem]:
    """Yield a problem for each tensor of a file with a weight that is not finite; `advance` is told the weights."""
    found: dict[int, tuple[int, int]] = {}

    def look(slab: Slab) -> int:
        tensor = plan.tensors[slab.index]
        rows = read_planned(plan.source, tensor, slab.start, slab.stop)
        if rows.dtype == np.uint8:
            rows = dequantize(GGMLQuantizationType[tensor.source_type], rows)
        bad = first_nonfinite(rows)
        if bad is not None and slab.index not in found:
            found[slab.index] = (slab.start + bad[0], bad[1])
        return (slab.stop - slab.start) * tensor.row_length

    for n_weights in in_threads(look, cut_slabs(plan, SLAB_WEIGHTS), n_threads):
        advance(n_weights)
    for index, (row, column) in sorted(found.items()):
        tensor = plan.tensors[index]
        expert, within = divmod(row, tensor.n_rows // max(tensor.n_expert, 1))
        number = expert if tensor.n_expert else None
        where = f"{tensor.name}, expert {expert}" if tensor.n_expert else tensor.name
        message = f"{where}: NaN or infinity in row {within}, column {column}"
        yield Problem(Kind.NONFINITE, message, tensor.name, number, ((within, within + 1),))
