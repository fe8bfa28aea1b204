"""Finds the matrices of all experts of a layer, per expert or fused, and stacks them in order of the expert."""

import re
from collections.abc import Mapping

from ..formats.errors import CheckpointError
from ..formats.source import TensorInfo
from ..models.family import Experts
from ..writer.plan import Piece


def count_experts(tensors: Mapping[str, TensorInfo], experts: tuple[Experts, ...], layer: int) -> int:
    """Return how many experts the tensors of a layer hold: the highest number of any, plus one."""
    fused = [tensors[name].shape[0] for name in _fused_names(experts, layer) if name in tensors]
    if fused:
        return max(fused)
    highest = -1
    for matrix in (one for one in experts if one.classic):
        pattern = re.compile(re.escape(matrix.classic.format(layer=layer, expert="#")).replace(r"\#", r"(\d+)"))
        for name in tensors:
            found = pattern.fullmatch(name)
            if found:
                highest = max(highest, int(found[1]))
    return highest + 1


def stack(
    tensors: Mapping[str, TensorInfo], matrix: Experts, layer: int, n_expert: int, shape: tuple[int, int], keys: str
) -> tuple[Piece, ...]:
    """Return the pieces that give one matrix of all experts, `shape` (rows, row length) each.

    `keys` are those of config.json that the shape comes from.

    Raises CheckpointError naming the expert that is missing or has another shape.
    """
    part, n_parts = matrix.part
    n_rows, row_length = shape
    for name in _fused_names((matrix,), layer):
        info = tensors.get(name)
        if info is not None:
            expected = (n_expert, n_parts * n_rows, row_length)
            if info.shape != expected:
                raise CheckpointError(
                    f"{name} ({info.where}) has the shape {list(info.shape)}; "
                    f"config.json asks for {list(expected)} ({keys})"
                )
            starts = [(expert * n_parts + part) * n_rows for expert in range(n_expert)]
            return tuple(Piece(name, start, start + n_rows) for start in starts)
    if not matrix.classic:
        name = matrix.fused[0].format(layer=layer)
        raise CheckpointError(f"the experts of layer {layer} are missing: no tensor {name}; is the checkpoint whole?")
    pieces = []
    for expert in range(n_expert):
        name = matrix.classic.format(layer=layer, expert=expert)
        info = tensors.get(name)
        if info is None:
            raise CheckpointError(f"expert {expert} of layer {layer} is missing: no tensor {name}; merge again")
        if info.shape != shape:
            names = (matrix.classic.format(layer=layer, expert=index) for index in range(n_expert))
            if len({tensors[one].shape for one in names if one in tensors}) == 1 < n_expert:
                raise CheckpointError(
                    f"{name} ({info.where}) has the shape {list(info.shape)}, and so have all experts of layer "
                    f"{layer}; config.json asks for {list(shape)} ({keys}), which is wrong: correct it"
                )
            raise CheckpointError(
                f"expert {expert} of layer {layer} has another shape: {name} ({info.where}) is {list(info.shape)}, "
                f"not {list(shape)}; experts must be of one size"
            )
        pieces.append(Piece(name, 0, n_rows))
    return tuple(pieces)


def _fused_names(experts: tuple[Experts, ...], layer: int) -> list[str]:
    names = (name.format(layer=layer) for matrix in experts for name in matrix.fused)
    return [name + suffix for name in names for suffix in ("", ".weight")]
