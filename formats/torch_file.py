"""A PyTorch file (pytorch_model.bin), read without running anything of it: a checked directory, then rows on demand.

    a zip archive whose entries are stored, not compressed:
    NAME/data.pkl      a pickle: {"tensor": rebuild(storage KEY, offset, shape, strides, ...)}
    NAME/data/KEY      the bytes of a storage, one or several tensors
    NAME/byteorder     "little"

The pickle is not loaded with `pickle`: `read_pickle` knows the few instructions that a dict of tensors is made of.
Source: torch/serialization.py and torch/_utils.py of PyTorch 2.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckpointError
from .positional import PositionalFile
from .safetensors import DTYPES, LARGEST_NUMBER, MOST_DIMENSIONS
from .source import TensorInfo, file_identity
from .torch_pickle import Pickled, Storage, read_pickle

LARGEST_PICKLE = 64 << 20
ZIP_MAGIC = b"PK\x03\x04"
# What torch.save wrote before version 1.6: a pickle of the number 0x1950a86a20f9469cfc6c comes first.
OLD_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
TO_ZIP = "python -c \"import torch; f = '{name}'; torch.save(torch.load(f, map_location='cpu', weights_only=True), f)\""


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: the entry of the archive, and the byte within it."""

    entry: zipfile.ZipInfo
    start: int


class TorchFile:
    """A TensorSource over one file. Raises CheckpointError for what is no dict of tensors, or could be harmful."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._size = self.path.stat().st_size
        archive = self._archive()
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise CheckpointError(f"{self.path}: a zip archive without a data.pkl; is it a PyTorch checkpoint?")
        self._prefix = pickles[0].removesuffix("data.pkl")
        order = self._small(archive, entries, "byteorder", b"little")
        if order != b"little":
            raise CheckpointError(f"{self.path}: its numbers are of the byte order {order!r}; only little is read")
        self._pickle = self._small(archive, entries, "data.pkl", b"")
        archive.close()
        self.tensors: dict[str, TensorInfo] = {}
        self._places: dict[str, _Place] = {}
        for name, pickled in read_pickle(self._pickle, self.path).items():
            self.tensors[name], self._places[name] = self._checked(name, pickled, entries)
        self._starts: dict[str, int] = {}
        self._file: PositionalFile | None = None

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) of a tensor; see TensorSource."""
        length = self.tensors[name].row_length
        return self.read_values(name, start * length, stop * length).reshape(stop - start, length)

    def read_values(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return values [start, stop) of a tensor, counted through all of its rows."""
        place = self._places[name]
        values = np.empty(stop - start, DTYPES[self.tensors[name].dtype][1])
        self.file.read_into(self._start_of(place.entry) + place.start + start * values.itemsize, values)
        return values

    def identity(self) -> dict[str, str]:
        """Return path, size, time of change and the pickle's hash; see TensorSource."""
        return file_identity(self.path, self._pickle)

    @property
    def file(self) -> PositionalFile:
        """The file, opened when the first row is wanted."""
        if self._file is None:
            self._file = PositionalFile(self.path)
        return self._file

    def _archive(self) -> zipfile.ZipFile:
        with open(self.path, "rb") as file:
            head = file.read(64)
        if OLD_MAGIC in head:
            command = TO_ZIP.format(name=self.path)
            raise CheckpointError(f"{self.path}: saved in PyTorch's format of before 2020; convert it with: {command}")
        if head.startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{self.path}: a pointer of Git LFS, not the weights; fetch them with: git lfs pull")
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, ValueError, RuntimeError, OSError) as error:
            what = "truncated or broken" if head.startswith(ZIP_MAGIC) else "not a PyTorch checkpoint"
            raise CheckpointError(f"{self.path}: {what} ({error}); download or copy it again") from None

    def _small(
        self, archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], name: str, lacks: bytes
    ) -> bytes:
        """Return a small entry's bytes."""
        entry = entries.get(self._prefix + name)
        if entry is None:
            return lacks
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > LARGEST_PICKLE:
            raise CheckpointError(f"{self.path}: {entry.filename} is compressed or of {entry.file_size} bytes; refused")
        try:
            return archive.read(entry)
        except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, OSError) as error:  # what zipfile raises
            raise CheckpointError(f"{self.path}: {entry.filename} is broken: {error}") from None

    def _checked(self, name: str, of: Pickled, entries: Mapping[str, zipfile.ZipInfo]) -> tuple[TensorInfo, _Place]:
        storage: Storage = of.storage
        where = f"{self.path}: tensor {name!r}"
        numbers = (of.offset, storage.n_values, *of.shape, *of.strides)
        if not all(type(n) is int and 0 <= n < LARGEST_NUMBER for n in numbers) or len(of.shape) > MOST_DIMENSIONS:
            raise CheckpointError(f"{where} lacks a possible shape or offset")
        if not _is_contiguous(of.shape, of.strides):
            raise CheckpointError(
                f"{where} is stored with the strides {list(of.strides)}; save it with .contiguous() first"
            )
        entry = entries.get(f"{self._prefix}data/{storage.key}")
        if entry is None:
            raise CheckpointError(f"{where}: its data ({self._prefix}data/{storage.key}) is not in the file")
        itemsize = DTYPES[of.dtype][1].itemsize
        end = (of.offset + prod(of.shape)) * itemsize
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise CheckpointError(f"{where}: its data is compressed; save it with torch.save")
        if end > entry.file_size or entry.header_offset + entry.file_size > self._size:
            raise CheckpointError(f"{where} ends at byte {end} of its data, which has {entry.file_size}; copy it again")
        return TensorInfo(name, of.dtype, of.shape, f"{self.path.name}, {entry.filename}"), _Place(
            entry, of.offset * itemsize
        )

    def _start_of(self, entry: zipfile.ZipInfo) -> int:
        """Return the byte of the file at which an entry's data begins.

        A local header has 30 bytes, the last four of which are the lengths of the name and of the padding behind it.
        """
        if entry.filename not in self._starts:
            header = bytearray(30)
            self.file.read_into(entry.header_offset, memoryview(header))
            if not header.startswith(ZIP_MAGIC):
                raise CheckpointError(f"{self.path}: no data at byte {entry.header_offset}; download or copy it again")
            lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            self._starts[entry.filename] = entry.header_offset + 30 + lengths
        return self._starts[entry.filename]


def _is_contiguous(shape: tuple[Any, ...], strides: tuple[Any, ...]) -> bool:
    """Tell whether values lie one after the other; where an axis has one entry, its stride is no matter."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected and prod(shape):
            return False
        expected *= size
    return True
