"""A GGUF file as a source of tensors, and the plan that writes it again with other types.

Files from before April 2024 keep one tensor per expert (`blk.N.ffn_gate.E.weight`), which nothing loads any
more: their plan stacks them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf.constants import Keys

from ..formats.errors import GgufError
from ..formats.gguf_file import GgufFile, GgufTensor, tensor_bytes
from ..formats.positional import PositionalFile
from ..formats.source import TensorInfo, file_identity
from .plan import FLOAT_TYPES, Piece, Plan, PlannedTensor

SEPARATE_EXPERT = re.compile(
    r"blk\.(?P<layer>0|[1-9][0-9]{0,4})\.ffn_(?P<matrix>gate|up|down)\.(?P<expert>0|[1-9][0-9]{0,4})\.weight"
)
SPLIT_KEYS = frozenset(
    (Keys.Split.LLM_KV_SPLIT_NO, Keys.Split.LLM_KV_SPLIT_COUNT, Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT)
)
DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


class GgufSource:
    """A TensorSource over a GGUF file and its shards; quantized rows come as uint8 [n_rows, row_bytes]."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.tensors: Mapping[str, TensorInfo] = {
            tensor.name: TensorInfo(
                tensor.name,
                tensor.qtype.name,
                tuple(reversed(tensor.shape)),
                f"{tensor.path.name} at byte {tensor.offset}",
            )
            for tensor in file.tensors.values()
        }
        self._open: dict[Path, PositionalFile] = {}

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) of a tensor; see TensorSource."""
        tensor = self.file.tensors[name]
        dtype = DTYPES.get(tensor.qtype.name, np.dtype(np.uint8))
        size = tensor_bytes(tensor.shape[:1], tensor.qtype)
        rows = np.empty((stop - start, size // dtype.itemsize), dtype)
        self._opened(tensor.path).read_into(tensor.offset + start * size, rows)
        return rows

    def identity(self) -> dict[str, str]:
        """Return path, size, time of change and header hash of each shard; see TensorSource."""
        identity: dict[str, str] = {}
        for path in self.file.shards:
            with open(path, "rb") as file:
                identity |= file_identity(path, file.read(self.file.header_bytes))
        return identity

    def _opened(self, path: Path) -> PositionalFile:
        if path not in self._open:
            self._open.setdefault(path, PositionalFile(path))
        return self._open[path]


def plan_from_gguf(file: GgufFile, mixed: bool = False) -> Plan:
    """Return the plan that writes a GGUF file again: same fields, same tensors in order, experts stacked.

    Raises GgufError when separate experts are incomplete, or of several types, unless those may be `mixed`: then the
    type of such a tensor is "mixed", and each of its rows of that of its piece.
    """
    source = GgufSource(file)
    fields = {key: value for key, value in file.fields.items() if key not in SPLIT_KEYS}
    groups = _separate_experts(file.tensors.values())
    tensors: list[PlannedTensor] = []
    for tensor in file.tensors.values():
        name = SEPARATE_EXPERT.fullmatch(tensor.name)
        if name is None:
            tensors.append(_as_it_is(tensor, source.tensors[tensor.name]))
        else:
            group = groups.pop((int(name["layer"]), name["matrix"]), None)
            if group is not None:
                tensors.append(_stacked(group, file, mixed))
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        raise GgufError(f"{file.path}: experts are there both one by one and stacked; convert it again")
    stacked = len(tensors) < len(file.tensors)
    warnings = ("one tensor per expert, as before April 2024: experts are stacked",) if stacked else ()
    return Plan(file.architecture, fields, tuple(tensors), source, warnings=warnings)


def _as_it_is(tensor: GgufTensor, info: TensorInfo) -> PlannedTensor:
    n_expert = tensor.shape[2] if len(tensor.shape) == 3 else 0
    return PlannedTensor(
        tensor.name, tensor.shape, tensor.qtype.name, (Piece(tensor.name, 0, info.n_rows),), n_expert=n_expert
    )


@dataclass(frozen=True)
class _Group:
    layer: int
    matrix: str
    experts: dict[int, GgufTensor]


def _separate_experts(tensors: Iterable[GgufTensor]) -> dict[tuple[int, str], _Group]:
    groups: dict[tuple[int, str], _Group] = {}
    for tensor in tensors:
        name = SEPARATE_EXPERT.fullmatch(tensor.name)
        if name:
            key = (int(name["layer"]), name["matrix"])
            groups.setdefault(key, _Group(*key, {})).experts[int(name["expert"])] = tensor
    return groups


def _stacked(group: _Group, file: GgufFile, mixed: bool) -> PlannedTensor:
    where = f"{file.path}: layer {group.layer}, ffn_{group.matrix}"
    n_expert = file.hyper(Keys.LLM.EXPERT_COUNT, len(group.experts))
    if sorted(group.experts) != list(range(len(group.experts))) or len(group.experts) != n_expert:
        there = ", ".join(str(expert) for expert in sorted(group.experts))
        raise GgufError(f"{where}: only the experts {there} of {n_expert!r:.20} are there; convert it again")
    tensors = [group.experts[expert] for expert in range(n_expert)]
    types = {tensor.qtype.name for tensor in tensors}
    if len({tensor.shape for tensor in tensors}) > 1:
        raise GgufError(f"{where}: experts of different shapes; convert it again")
    if len(tensors[0].shape) != 2:
        raise GgufError(f"{where}: experts are not matrices; convert it again")
    if len(types) > 1 and not mixed and not types <= set(FLOAT_TYPES):
        raise GgufError(
            f"{where}: experts of different types ({', '.join(sorted(types))}) cannot be stacked as they are; convert "
            "the model again, or give them one type by moe-gguf upgrade --allow-requantize"
        )
    return PlannedTensor(
        f"blk.{group.layer}.ffn_{group.matrix}_exps.weight",
        (*tensors[0].shape, n_expert),
        types.pop() if len(types) == 1 else "mixed",
        tuple(Piece(tensor.name, 0, tensor.shape[1]) for tensor in tensors),
        n_expert=n_expert,
    )
