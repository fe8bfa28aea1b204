"""Where every byte of a GGUF file goes, before the first is written: header, offsets, exact sizes, shards.

0       4          8             16          24         (gguf v3, little-endian)
| GGUF  | u32 3    | u64 tensors | u64 fields | fields  | tensor entries | padding | tensor | padding | tensor ...
field:   u64 length, key | u32 type | value             (a string is u64 length, bytes; an array u32 type, u64 count)
entry:   u64 length, name | u32 n_dims | u64 shape[n_dims] | u32 type | u64 offset from the end of the padding
padding: to a multiple of general.alignment, 32 if it is not stated
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf.constants import (
    GGUF_DEFAULT_ALIGNMENT,
    GGUF_MAGIC,
    GGUF_VERSION,
    GGMLQuantizationType,
    GGUFValueType,
    Keys,
)

from .gguf_fields import Field, pack_fields, pack_string
from .gguf_file import tensor_bytes


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of a tensor: `shape` in GGUF order, in weights."""

    name: str
    shape: tuple[int, ...]
    qtype: GGMLQuantizationType

    @property
    def n_bytes(self) -> int:
        """Exact bytes of its data."""
        return tensor_bytes(self.shape, self.qtype)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight."""
        return 8 * self.n_bytes / prod(self.shape)


@dataclass(frozen=True)
class ShardLayout:
    """One file: its header's bytes, the absolute offset of each tensor, and its exact size."""

    header: bytes
    offsets: Mapping[str, int]
    n_bytes: int


def padded(n_bytes: int, alignment: int) -> int:
    """Round up to the alignment."""
    return -(-n_bytes // alignment) * alignment


def alignment_of(fields: Mapping[str, Field]) -> int:
    """Return the file's alignment in bytes."""
    field = fields.get(Keys.General.ALIGNMENT)
    return field.value if field else GGUF_DEFAULT_ALIGNMENT


def lay_out(fields: Mapping[str, Field], entries: Sequence[TensorEntry]) -> ShardLayout:
    """Lay out one file."""
    alignment = alignment_of(fields)
    infos, at = bytearray(), 0
    starts: dict[str, int] = {}
    for entry in entries:
        starts[entry.name] = at
        infos += pack_string(entry.name) + struct.pack("<I", len(entry.shape))
        infos += struct.pack(f"<{len(entry.shape)}Q", *entry.shape) + struct.pack("<IQ", entry.qtype, at)
        at += padded(entry.n_bytes, alignment)
    header = struct.pack("<IIQQ", GGUF_MAGIC, GGUF_VERSION, len(entries), len(fields)) + pack_fields(fields) + infos
    header += bytes(-len(header) % alignment)
    return ShardLayout(header, {name: len(header) + start for name, start in starts.items()}, len(header) + at)


def split_fields(fields: Mapping[str, Field], number: int, count: int, n_tensors: int) -> dict[str, Field]:
    """Return the fields of shard `number` of `count`: all of them in the first, the split.* keys in each."""
    split = {
        Keys.Split.LLM_KV_SPLIT_NO: Field(number, GGUFValueType.UINT16),
        Keys.Split.LLM_KV_SPLIT_COUNT: Field(count, GGUFValueType.UINT16),
        Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT: Field(n_tensors, GGUFValueType.INT32),
    }
    kept = {key: value for key, value in fields.items() if key not in split}
    return {**kept, **split} if number == 0 else split


def group_by_size(entries: Sequence[TensorEntry], largest: int, alignment: int) -> list[list[TensorEntry]]:
    """Cut the entries into shards of at most `largest` bytes of tensor data; a larger tensor gets its own.

    Source: tools/gguf-split/gguf-split.cpp of llama.cpp.
    """
    groups: list[list[TensorEntry]] = [[]]
    filled = 0
    for entry in entries:
        size = padded(entry.n_bytes, alignment)
        if groups[-1] and filled + size > largest:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += size
    return groups


def shard_path(path: Path, number: int, count: int) -> Path:
    """Return the name of shard `number` (from 0) of `count`, by llama.cpp's convention."""
    return path if count == 1 else path.with_name(f"{path.stem}-{number + 1:05}-of-{count:05}.gguf")
