"""An importance matrix as llama-imatrix stores it: sums of squares and counts come in, a file goes out, and back.

    GGUF   NAME.in_sum2  F32 [row_length, n]     NAME.counts  F32 [1, n]     n: experts, or 1; sorted by name
    .dat   n_entries | length, name, n_call, n_value, float32 values | ... | n_chunk | length, name of the text

Source: save_imatrix, save_imatrix_legacy and load_imatrix of tools/imatrix/imatrix.cpp. In a .dat values are
sum / count * n_call, and counts are chunks: what it says of single experts is lost.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType, GGUFValueType, Keys

from .errors import GgufError, ImatrixError
from .gguf_fields import Field, strings
from .gguf_file import GgufFile, read_gguf
from .gguf_layout import TensorEntry, lay_out

SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class ImatrixFile:
    """What a file holds: by matrix (sums float32 [n, row_length], counts int64 [n]), texts, chunks and their tokens.

    `notes` are further fields, text, which llama.cpp does not read.
    """

    entries: Mapping[str, tuple[np.ndarray, np.ndarray]]
    datasets: tuple[str, ...]
    n_chunk: int
    n_ctx: int
    notes: Mapping[str, str] = field(default_factory=dict)


def write_gguf_imatrix(path: Path, matrix: ImatrixFile) -> None:
    """Write llama.cpp's GGUF form, under a temporary name until it is whole and on the disk."""
    fields = {
        Keys.General.TYPE: Field("imatrix", GGUFValueType.STRING),
        Keys.IMatrix.DATASETS: strings(matrix.datasets),
        Keys.IMatrix.CHUNK_COUNT: Field(matrix.n_chunk, GGUFValueType.UINT32),
        Keys.IMatrix.CHUNK_SIZE: Field(matrix.n_ctx, GGUFValueType.UINT32),
    }
    fields |= {key: Field(text, GGUFValueType.STRING) for key, text in matrix.notes.items()}
    entries: list[TensorEntry] = []
    arrays: list[np.ndarray] = []
    for name, (sums, counts) in sorted(matrix.entries.items()):
        # ggml leaves out trailing dimensions of 1.
        n = (len(counts),) if len(counts) > 1 else ()
        entries.append(TensorEntry(name + SUMS, (sums.shape[1], *n), GGMLQuantizationType.F32))
        entries.append(TensorEntry(name + COUNTS, (1, *n), GGMLQuantizationType.F32))
        arrays += [sums, counts]
    layout = lay_out(fields, entries)
    image = bytearray(layout.n_bytes)
    image[: len(layout.header)] = layout.header
    for entry, array in zip(entries, arrays, strict=True):
        at = layout.offsets[entry.name]
        image[at : at + entry.n_bytes] = np.ascontiguousarray(array, "<f4").tobytes()
    _put(path, bytes(image))


def write_legacy_imatrix(path: Path, matrix: ImatrixFile) -> None:
    """Write the .dat form; matrices of which nothing is known are left out, as llama.cpp does."""
    stored = {name: entry for name, entry in sorted(matrix.entries.items()) if entry[1].any()}
    out = bytearray(struct.pack("<i", len(stored)))
    for name, (sums, counts) in stored.items():
        data = name.encode()
        n_call = -(-int(counts.max()) // matrix.n_ctx)
        seen = counts > 0
        count = np.where(seen, counts, 1).astype(np.float32)[:, None]
        values = np.where(seen[:, None], sums.astype(np.float32), np.float32(1)) / count * np.float32(n_call)
        out += struct.pack("<i", len(data)) + data + struct.pack("<ii", n_call, values.size)
        out += values.astype("<f4").tobytes()
    text = (matrix.datasets[-1] if matrix.datasets else "").encode()
    out += struct.pack("<ii", matrix.n_chunk, len(text)) + text
    _put(path, bytes(out))


def _put(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_gguf_imatrix(path: Path) -> ImatrixFile:
    """Read the GGUF form with its sums and counts as they are. Raises ImatrixError for what is no such file."""
    try:
        file = read_gguf(path)
    except GgufError as error:
        older = "; a .dat has forgotten how many tokens each expert saw: make it again as GGUF"
        raise ImatrixError(f"{error}{older if path.suffix == '.dat' else ''}") from None
    except OSError as error:
        raise ImatrixError(f"{path}: {error.strerror or error}") from None
    if Keys.IMatrix.CHUNK_SIZE not in file.metadata:
        raise ImatrixError(f"{path}: no importance matrix: its metadata has no {Keys.IMatrix.CHUNK_SIZE}")
    entries = {}
    for name in sorted(name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)):
        sums, counts = _read(file, name + SUMS), _read(file, name + COUNTS)
        if not counts.size or sums.size % counts.size or not np.isfinite(counts).all():
            raise ImatrixError(f"{path}: {name} has {sums.size} sums for {counts.size} counts; make it again")
        entries[name] = (sums.reshape(counts.size, -1), np.rint(counts).astype(np.int64))
    if not entries:
        raise ImatrixError(f"{path}: holds no importance data")
    datasets = file.metadata.get(Keys.IMatrix.DATASETS) or []
    numbers = [file.metadata.get(key) for key in (Keys.IMatrix.CHUNK_COUNT, Keys.IMatrix.CHUNK_SIZE)]
    n_chunk, n_ctx = (number if isinstance(number, int) else 0 for number in numbers)
    notes = {key: value for key, value in file.metadata.items() if key.startswith("moe-gguf.") and type(value) is str}
    return ImatrixFile(entries, tuple(map(str, datasets)), n_chunk, n_ctx, notes)


def _read(file: GgufFile, name: str) -> np.ndarray:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.qtype != GGMLQuantizationType.F32:
        raise ImatrixError(f"{file.path}: {name} is missing or not F32; make it again")
    n = int(np.prod(tensor.shape))
    return np.fromfile(tensor.path, "<f4", n, offset=tensor.offset)
