"""Experts of several types that become one tensor: which type it gets, and rows of the others in that type.

Files of before April 2024 may have them: mixtures of that time counted a layer's experts as if they were layers.
"""

from collections.abc import Iterator

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ..formats.floats import encode_float, widen
from ..formats.source import TensorSource
from ..formats.words import count
from ..quantize.ggml import dequantize, quantize_chunk
from ..writer.plan import FLOAT_TYPES, Plan, PlannedTensor
from ..writer.write import Encode, locate

MIXED = "mixed"


def stacked_type(tensor: PlannedTensor, source: TensorSource) -> GGMLQuantizationType:
    """Return the type of a tensor that is written again: that of all its pieces, or of several the largest.

    Of several float types it is F32, which holds all of them exactly.
    """
    if tensor.source_type != MIXED:
        return GGMLQuantizationType[tensor.source_type]
    stored = {source.tensors[piece.name].dtype for piece in tensor.pieces}
    if stored <= set(FLOAT_TYPES):
        return GGMLQuantizationType.F32
    return max((GGMLQuantizationType[name] for name in stored), key=_bits)


def _bits(qtype: GGMLQuantizationType) -> tuple[float, int]:
    block_size, type_size = GGML_QUANT_SIZES[qtype]
    return 8 * type_size / block_size, int(qtype)


def requantized(plan: Plan) -> Iterator[str]:
    """Yield in words which experts get another type than they have, and lose by it."""
    for tensor in plan.tensors:
        if tensor.source_type == MIXED and (qtype := stacked_type(tensor, plan.source)).name not in FLOAT_TYPES:
            stored = [plan.source.tensors[piece.name].dtype for piece in tensor.pieces]
            others = [name for name in stored if name != qtype.name]
            experts = f"{count(len(others), 'expert')} of {len(stored)}"
            yield f"{tensor.name}: {experts} go from {', '.join(sorted(set(others)))} to {qtype.name}, quantized again"


def in_one_type(source: TensorSource) -> Encode:
    """Return what encodes rows of stacked experts: copied where they have the type already."""

    def encode(tensor: PlannedTensor, row: int, rows: np.ndarray, qtype: GGMLQuantizationType) -> np.ndarray:
        stored = source.tensors[locate(tensor, row)[0]].dtype
        if stored == qtype.name:
            return np.ascontiguousarray(rows)
        weights = dequantize(GGMLQuantizationType[stored], rows) if rows.dtype == np.uint8 else widen(rows)
        return encode_float(weights, qtype) if qtype.name in FLOAT_TYPES else quantize_chunk(qtype, weights)

    return encode
