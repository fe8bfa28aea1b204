"""The plan of a GGUF file: an ordered, inert list of what each tensor is made of, plus metadata.

Comes from convert (checkpoints, recipes) or from an older GGUF; goes to `write`. It has read no weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
from gguf.constants import GGMLQuantizationType

from ..formats.gguf_fields import Field
from ..formats.source import TensorSource


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of the source tensor `name`, flattened to [n_rows, row_length]."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class RopePermutation:
    """Reorder each head's rows from halves (Hugging Face) to interleaved pairs (GGUF).

    Row 2i + j of a head comes from its row j * head_dim / 2 + i.
    Source: LlamaModel.permute in llama.cpp's conversion/llama.py.
    """

    n_head: int

    def rows(self, start: int, stop: int, n_rows: int) -> np.ndarray:
        """Return the source row of each output row in [start, stop)."""
        head_dim = n_rows // self.n_head
        head, row = np.divmod(np.arange(start, stop), head_dim)
        return head * head_dim + row % 2 * (head_dim // 2) + row // 2


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output.

    `shape` is in GGUF order (fastest first); `source_type` the GGML name of how the pieces are stored
    ("BF16"); the pieces together give every row, in order; `values` holds a tensor that is computed and
    not read. `n_expert` is the size of the slowest axis of stacked experts, else 0.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    pieces: tuple[Piece, ...]
    permutation: RopePermutation | None = None
    values: np.ndarray | None = field(default=None, compare=False)
    n_expert: int = 0

    @property
    def row_length(self) -> int:
        """Weights per row."""
        return self.shape[0]

    @property
    def n_rows(self) -> int:
        """Rows, over all experts."""
        return prod(self.shape[1:])

    @property
    def n_weights(self) -> int:
        """Weights in all."""
        return prod(self.shape)


@dataclass(frozen=True)
class Plan:
    """What to write: the fields of the metadata in order, and the tensors in the order of the file.

    `source` serves the pieces; `ignored` names the source tensors that are left out, each with the reason;
    `warnings` is what the user should know before it is written.
    """

    architecture: str
    fields: Mapping[str, Field]
    tensors: tuple[PlannedTensor, ...]
    source: TensorSource
    ignored: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def with_fields(self, fields: Mapping[str, Field]) -> "Plan":
        """Return the plan with fields added or replaced; a replaced one keeps its place."""
        return replace(self, fields={**self.fields, **fields})


def read_planned(source: TensorSource, tensor: PlannedTensor, start: int, stop: int) -> np.ndarray:
    """Return rows [start, stop) of a planned tensor, as stored in the source (see TensorSource.read_rows)."""
    if tensor.values is not None:
        return tensor.values.reshape(tensor.n_rows, tensor.row_length)[start:stop]
    if tensor.permutation is None:
        return _read_pieces(source, tensor.pieces, start, stop)
    if tensor.n_rows == 1:
        return _read_pieces(source, tensor.pieces, 0, 1)[:, tensor.permutation.rows(0, *(tensor.row_length,) * 2)]
    head_dim = tensor.n_rows // tensor.permutation.n_head
    first, last = start // head_dim * head_dim, -(-stop // head_dim) * head_dim
    heads = _read_pieces(source, tensor.pieces, first, last)
    return heads[tensor.permutation.rows(start, stop, tensor.n_rows) - first]


def _read_pieces(source: TensorSource, pieces: tuple[Piece, ...], start: int, stop: int) -> np.ndarray:
    parts, at = [], 0
    for piece in pieces:
        length = piece.stop - piece.start
        low, high = max(start - at, 0), min(stop - at, length)
        if low < high:
            parts.append(source.read_rows(piece.name, piece.start + low, piece.start + high))
        at += length
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True)
class Slab:
    """Rows [start, stop) of the tensor at `index` of the plan: the unit of work."""

    index: int
    start: int
    stop: int


def cut_slabs(plan: Plan, weights: int) -> list[Slab]:
    """Cut the plan's tensors into slabs of about `weights` weights, never across tensors or experts."""
    slabs: list[Slab] = []
    for index, tensor in enumerate(plan.tensors):
        rows = max(1, weights // tensor.row_length)
        block = tensor.n_rows // max(tensor.n_expert, 1)
        for expert in range(0, tensor.n_rows, block):
            slabs += [Slab(index, expert + row, expert + min(row + rows, block)) for row in range(0, block, rows)]
    return slabs


FLOAT_TYPES = {
    "F32": GGMLQuantizationType.F32,
    "F16": GGMLQuantizationType.F16,
    "BF16": GGMLQuantizationType.BF16,
}
