"""Importance matrices: llama.cpp's GGUF or legacy `.dat` comes in, weights per expert and column go out.

Values are prepared as llama.cpp's quantizer does (tools/quantize/quantize.cpp, common/imatrix-loader.cpp).
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, Keys
from gguf.constants import GGUF_MAGIC

from ..formats.errors import GgufError, ImatrixError
from ..formats.gguf_file import GgufFile, GgufTensor, read_gguf
from .overrides import LONGEST_OVERRIDE, KvOverride

SUMS_SUFFIX = ".in_sum2"
COUNTS_SUFFIX = ".counts"

_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")

# No layer of any model has longer rows times experts; a larger number in a legacy file means that it is broken.
_LONGEST_ENTRY = 2**31 - 1


@dataclass
class Imatrix:
    """An importance matrix: per tensor n_expert times the row length of float32 values, one after the other.

    `warnings` collects what was found strange while reading it and while asking it for tensors.
    """

    path: str
    values: Mapping[str, np.ndarray]
    datasets: tuple[str, ...] = ()
    n_chunk: int = 0
    warnings: list[str] = field(default_factory=list)
    left_out: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """The tensors that it knows."""
        return frozenset(self.values)

    def restricted(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> "Imatrix":
        """Return the matrix of those tensors alone whose names contain one of `include`, and none of `exclude`.

        Empty `include` takes all, as llama-quantize's --include-weights and --exclude-weights do.
        """
        values = {
            name: value
            for name, value in self.values.items()
            if not any(part in name for part in exclude) and (not include or any(part in name for part in include))
        }
        return replace(self, values=values, left_out=self.names - frozenset(values))

    def for_tensor(self, name: str, shape: Sequence[int]) -> np.ndarray | None:
        """Return float32 [n_expert, row_length] for a tensor of this shape (GGUF order), None when unknown.

        Raises ImatrixError when the sizes differ, except for token embeddings, which do without.
        """
        values = self.values.get(name)
        row_length, n_expert = shape[0], shape[2] if len(shape) > 2 else 1
        if values is None:
            # llama.cpp's matrices leave out both by default, so that is nothing to worry about.
            if name not in ("output.weight", *_EMBEDDINGS, *self.left_out):
                self._warn(f"{self.path}: nothing is known of {name}; its weights count alike")
            return None
        if values.size == row_length * n_expert:
            return values.reshape(n_expert, row_length)
        difference = f"{values.size} values for {name}, which has {n_expert} x {row_length}"
        if name not in _EMBEDDINGS:
            raise ImatrixError(f"{self.path}: {difference}; it was made for another model or expert layout")
        self._warn(f"{self.path}: {difference}; left out")
        return None

    def metadata_overrides(self) -> list[KvOverride]:
        """Return the quantize.imatrix.* keys that llama.cpp's quantizer writes into the file, in its order."""
        overrides: list[tuple[str, str | int]] = [("file", _shortened(self.path))]
        if self.datasets:
            overrides.append(("dataset", _shortened(self.datasets[0])))
        overrides.append(("entries_count", len(self.values)))
        if self.n_chunk > 0:
            overrides.append(("chunks_count", self.n_chunk))
        return [KvOverride(f"quantize.imatrix.{key}", value) for key, value in overrides]

    def _warn(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)


def _shortened(text: str) -> str:
    return text.encode("utf-8", "surrogateescape")[:LONGEST_OVERRIDE].decode("utf-8", "surrogateescape")


def load_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix, GGUF or legacy, told apart by its first bytes.

    Experts that no calibration token reached count 1.0 everywhere, and so do expert slices with values that are
    not finite; both are reported in `warnings`. Raises ImatrixError for files that are broken or something else.
    """
    try:
        with open(path, "rb") as file:
            is_gguf = file.read(4) == struct.pack("<I", GGUF_MAGIC)
    except OSError as error:
        raise ImatrixError(f"{path}: {error.strerror or error}") from None
    imatrix = _load_gguf(path) if is_gguf else _load_legacy(path)
    if not imatrix.values:
        raise ImatrixError(f"{path}: holds no importance data")
    return imatrix


def _load_gguf(path: Path) -> Imatrix:
    try:
        file = read_gguf(path)
    except GgufError as error:
        raise ImatrixError(str(error)) from None
    keys = (Keys.IMatrix.DATASETS, Keys.IMatrix.CHUNK_COUNT, Keys.IMatrix.CHUNK_SIZE)
    if missing := [key for key in keys if key not in file.metadata]:
        raise ImatrixError(f"{path}: no importance matrix, its metadata has no {', '.join(missing)}")
    datasets, n_chunk, _ = (file.metadata[key] for key in keys)
    if not isinstance(n_chunk, int):
        raise ImatrixError(f"{path}: {Keys.IMatrix.CHUNK_COUNT} is {n_chunk!r}, not a number; make it again")
    imatrix = Imatrix(
        path=str(path),
        values={},
        datasets=tuple(map(str, datasets)) if isinstance(datasets, list) else (),
        n_chunk=n_chunk,
    )
    imatrix.values = {
        name: _importance(imatrix, name, _read(file, name, SUMS_SUFFIX), _read(file, name, COUNTS_SUFFIX))
        for name in _entry_names(file)
    }
    return imatrix


def _entry_names(file: GgufFile) -> list[str]:
    names = {
        name.removesuffix(suffix)
        for name in file.tensors
        for suffix in (SUMS_SUFFIX, COUNTS_SUFFIX)
        if name.endswith(suffix)
    }
    if not all(name.isprintable() for name in names):
        raise ImatrixError(f"{file.path}: broken, a tensor's name is no text; make it again")
    return sorted(names)


def _read(file: GgufFile, name: str, suffix: str) -> np.ndarray:
    tensor: GgufTensor | None = file.tensors.get(name + suffix)
    if tensor is None:
        raise ImatrixError(f"{file.path}: {name} has sums without counts or counts without sums; make it again")
    if tensor.qtype != GGMLQuantizationType.F32:
        raise ImatrixError(f"{file.path}: {tensor.name} is {tensor.qtype.name}, not F32; make it again")
    return np.fromfile(tensor.path, "<f4", prod(tensor.shape), offset=tensor.offset)


def _importance(imatrix: Imatrix, name: str, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Divide sums of squared inputs by the tokens that each expert saw, [n_expert * row_length] float32."""
    if sums.size % counts.size:
        raise ImatrixError(f"{imatrix.path}: {name} has {sums.size} sums for {counts.size} counts; make it again")
    if not np.isfinite(counts).all():
        raise ImatrixError(f"{imatrix.path}: {name} has counts that are not finite; make it again")
    # llama.cpp rounds half away from zero, and divides in single precision.
    exact = counts.astype(np.float64)
    rounded = np.trunc(exact + np.copysign(0.5, exact)).astype(np.float32)
    slices = sums.reshape(counts.size, -1)
    reached = np.asarray(rounded > 0)
    importance = np.ones_like(slices)
    np.divide(slices, rounded[:, None], out=importance, where=reached[:, None])
    if not reached.all():
        _report_experts(imatrix, name, ~reached, "saw no calibration token")
    return _without_infinite(imatrix, name, importance)


def _without_infinite(imatrix: Imatrix, name: str, slices: np.ndarray) -> np.ndarray:
    """Let every column of an expert count alike where its values are not finite; return them flat."""
    finite = np.logical_and.reduce(np.isfinite(slices), axis=1)
    if not finite.all():
        slices = np.where(finite[:, None], slices, np.float32(1))
        _report_experts(imatrix, name, ~finite, "has values that are not finite")
    return np.ascontiguousarray(slices, dtype=np.float32).reshape(-1)


def _report_experts(imatrix: Imatrix, name: str, which: np.ndarray, why: str) -> None:
    experts = ", ".join(map(str, np.flatnonzero(which)))
    whom = f"expert {experts} of {which.size}" if which.size > 1 else "it"
    imatrix.warnings.append(f"{imatrix.path}: {name}: {whom} {why}; its weights count alike")


def _load_legacy(path: Path) -> Imatrix:
    """Read the format of llama.cpp before August 2025: counts and names as int32, values as float32.

    n_entries, then per entry: length and bytes of the name, n_call, n_value, values; then, optional, the number of
    chunks, length and bytes of the dataset's name.
    """
    data = memoryview(path.read_bytes())
    reader = _LegacyReader(data, str(path))
    imatrix = Imatrix(path=str(path), values={})
    entries: dict[str, np.ndarray] = {}
    for number in range(reader.count("number of entries", 2**20)):
        name = reader.text(reader.count(f"length of name {number}", 4096))
        n_call = reader.int32()
        values = reader.floats(reader.count(f"number of values of {name}", _LONGEST_ENTRY))
        means = values / np.float32(n_call) if n_call > 0 else values
        entries[name] = _without_infinite(imatrix, name, means[None])
    imatrix.values = entries
    if reader.left >= 4:
        imatrix.n_chunk = reader.int32()
    if reader.left >= 4 and 0 < (length := reader.int32()) <= reader.left:
        imatrix.datasets = (reader.text(length),)
    return imatrix


@dataclass
class _LegacyReader:
    """Reads numbers from a legacy file and never past its end."""

    data: memoryview
    path: str
    at: int = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self.data) - self.at

    def take(self, n_bytes: int) -> memoryview:
        """Return the next bytes."""
        if n_bytes > self.left:
            raise ImatrixError(f"{self.path}: no importance matrix, or cut off at byte {len(self.data)}")
        self.at += n_bytes
        return self.data[self.at - n_bytes : self.at]

    def int32(self) -> int:
        """Read one integer."""
        return struct.unpack("<i", self.take(4))[0]

    def count(self, what: str, largest: int) -> int:
        """Read an integer that counts something."""
        value = self.int32()
        if not 0 < value <= largest:
            raise ImatrixError(f"{self.path}: no importance matrix: {what} is {value} at byte {self.at - 4}")
        return value

    def text(self, length: int) -> str:
        """Read a name."""
        text = bytes(self.take(length)).decode("utf-8", "surrogateescape").rstrip("\0")
        if not text.isprintable():
            raise ImatrixError(f"{self.path}: no importance matrix: no text at byte {self.at - length}")
        return text

    def floats(self, n_values: int) -> np.ndarray:
        """Read float32 values."""
        return np.frombuffer(self.take(4 * n_values), "<f4")
