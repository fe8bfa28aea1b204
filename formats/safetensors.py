"""A safetensors file, read: a strictly checked header, then rows on demand.

    8 bytes   length N of the header, little-endian
    N bytes   JSON: {"name": {"dtype": "BF16", "shape": [...], "data_offsets": [begin, end]}, ...}
    rest      the tensors, without holes or overlaps; offsets count from here

Source: https://github.com/huggingface/safetensors (format and its security rules).
"""

import json
import os
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckpointError
from .positional import PositionalFile
from .source import TensorInfo, file_identity

LONGEST_HEADER = 100_000_000
MOST_DIMENSIONS = 8
LARGEST_NUMBER = 2**62
FORMAT: Mapping[str, str] = {"format": "pt"}
DTYPES: dict[str, tuple[str, np.dtype]] = {
    "F32": ("F32", np.dtype("<f4")),
    "F16": ("F16", np.dtype("<f2")),
    "BF16": ("BF16", np.dtype("<u2")),
    "F64": ("F64", np.dtype("<f8")),
    "I64": ("I64", np.dtype("<i8")),
    "I32": ("I32", np.dtype("<i4")),
    "I16": ("I16", np.dtype("<i2")),
    "I8": ("I8", np.dtype("i1")),
    "U8": ("U8", np.dtype("u1")),
    "BOOL": ("BOOL", np.dtype("u1")),
    "F8_E4M3": ("F8_E4M3", np.dtype("u1")),
    "F8_E5M2": ("F8_E5M2", np.dtype("u1")),
    "F8_E8M0": ("F8_E8M0", np.dtype("u1")),
    "U16": ("U16", np.dtype("<u2")),
    "U32": ("U32", np.dtype("<u4")),
    "U64": ("U64", np.dtype("<u8")),
}


class SafetensorsFile:
    """A TensorSource over one file. Raises CheckpointError when the header cannot be trusted."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        size, self._start, header = _read_header(self.path)
        self._offsets: dict[str, int] = {}
        self.tensors: dict[str, TensorInfo] = {}
        given = header.get("__metadata__", {})
        self.metadata: dict[str, Any] = given if isinstance(given, dict) else {}
        spans: list[tuple[int, int, str]] = []
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            info, begin, end = self._checked(name, entry, size)
            self.tensors[name] = info
            self._offsets[name] = self._start + begin
            spans.append((begin, end, name))
        _check_spans(spans, size - self._start, self.path)
        self.tensors = dict(sorted(self.tensors.items(), key=lambda item: self._offsets[item[0]]))
        self._file: PositionalFile | None = None

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) of a tensor; see TensorSource."""
        length = self.tensors[name].row_length
        return self.read_values(name, start * length, stop * length).reshape(stop - start, length)

    def read_values(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return values [start, stop) of a tensor, counted through all of its rows."""
        values = np.empty(stop - start, DTYPES[self.tensors[name].dtype][1])
        self.file.read_into(self._offsets[name] + start * values.itemsize, values)
        return values

    def offset(self, name: str) -> int:
        """Return the byte of the file at which a tensor begins."""
        return self._offsets[name]

    def identity(self) -> dict[str, str]:
        """Return path, size, time of change and header hash; see TensorSource."""
        with open(self.path, "rb") as file:
            return file_identity(self.path, file.read(self._start))

    @property
    def file(self) -> PositionalFile:
        """The file, opened when the first row is wanted."""
        if self._file is None:
            self._file = PositionalFile(self.path)
        return self._file

    def _checked(self, name: str, entry: Any, size: int) -> tuple[TensorInfo, int, int]:
        try:
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            numbers = (*shape, begin, end)
            whole = isinstance(dtype, str) and isinstance(entry["shape"], list) and len(shape) <= MOST_DIMENSIONS
            whole = whole and all(type(n) is int and 0 <= n < LARGEST_NUMBER for n in numbers)
        except (TypeError, KeyError, ValueError):
            whole = False
            dtype, shape, begin, end = "", (), 0, 0
        if not whole:
            raise CheckpointError(
                f"{self.path}: broken header: tensor {name!r} lacks a possible dtype, shape or offsets"
            )
        if dtype not in DTYPES:
            raise CheckpointError(f"{self.path}: tensor {name!r} has the unsupported dtype {dtype!r}")
        n_bytes = prod(shape) * DTYPES[dtype][1].itemsize
        if end - begin != n_bytes:
            raise CheckpointError(
                f"{self.path}: broken header: tensor {name!r} of shape {list(shape)} and dtype {dtype} needs "
                f"{n_bytes} bytes, its offsets [{begin}, {end}] give {end - begin}"
            )
        if self._start + end > size:
            raise CheckpointError(
                f"{self.path}: truncated: tensor {name!r} ends at byte {self._start + end}, the file at {size}; "
                "download or copy it again"
            )
        where = f"{self.path.name} at byte {self._start + begin}"
        return TensorInfo(name, DTYPES[dtype][0], shape, where), begin, end


def pack_header(tensors: Iterable[TensorInfo], metadata: Mapping[str, str] = FORMAT) -> bytes:
    """Return the first bytes of a file that holds these tensors, in this order; the data begins at a multiple of 8."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for info in tensors:
        n_bytes = stored_bytes(info)
        entries[info.name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def stored_bytes(info: TensorInfo) -> int:
    """Return the bytes of a tensor's weights."""
    return prod(info.shape) * DTYPES[info.dtype][1].itemsize


def _read_header(path: Path) -> tuple[int, int, dict[str, Any]]:
    """Return the file's size, where its data starts, and its header."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(
                    f"{path}: truncated or not a safetensors file: a header of {length} bytes in {size} bytes"
                )
            if length > LONGEST_HEADER:
                raise CheckpointError(f"{path}: a header of {length} bytes; more than {LONGEST_HEADER} is refused")
            header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise CheckpointError(f"{path}: broken header: not valid JSON: {reason}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: broken header: not a JSON object")
    return size, 8 + length, header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{twice!r} is there twice")
    return entries


def _check_spans(spans: list[tuple[int, int, str]], data_bytes: int, path: Path) -> None:
    at, previous = 0, "the header"
    for begin, end, name in sorted(spans):
        if begin != at:
            what = "overlaps" if begin < at else "leaves a hole after"
            raise CheckpointError(f"{path}: broken header: tensor {name!r} {what} {previous}")
        at, previous = end, repr(name)
    if at != data_bytes:
        raise CheckpointError(f"{path}: broken header: {data_bytes - at} bytes after {previous} belong to no tensor")
