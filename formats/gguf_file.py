"""A GGUF file, read: its metadata and where each tensor lies. Only the header is touched, and nothing in it is
trusted: llama.cpp ends the process on some broken files, this raises GgufError.
"""

import mmap
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGUF_MAGIC,
    GGUF_VERSION,
    GGMLQuantizationType,
    Keys,
)

from .errors import GgufError
from .file_kinds import part_of, what_it_is
from .gguf_fields import LENGTH_OF_1, Cursor, Field, plain
from .gguf_types import UnknownTypeError, tensor_type

MAGIC = GGUF_MAGIC.to_bytes(4, "little")
# llama.cpp gave up version 1 in 2023.
OLDEST_LOADED = 2
LARGEST_DIMENSION = 2**40
LARGEST_ALIGNMENT = 2**20
LONGEST_NAME = 200
SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: `shape` in GGUF order (fastest first), in weights; `offset` from the start of `path`."""

    name: str
    shape: tuple[int, ...]
    qtype: GGMLQuantizationType
    offset: int
    n_bytes: int
    path: Path


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, or all shards of a split one: the first shard's fields, the tensors of all."""

    path: Path
    shards: tuple[Path, ...]
    fields: dict[str, Field]
    tensors: dict[str, GgufTensor]
    alignment: int
    header_bytes: int
    version: int = GGUF_VERSION

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The metadata as plain values."""
        return plain(self.fields)

    @property
    def architecture(self) -> str:
        """The value of general.architecture, or "unknown"."""
        return str(self.metadata.get(Keys.General.ARCHITECTURE, "unknown"))

    def hyper(self, key: str, default: Any = None) -> Any:
        """Return a hyper-parameter by its key of `gguf.Keys` with {arch}, such as Keys.LLM.EXPERT_COUNT."""
        return self.metadata.get(key.format(arch=self.architecture), default)


def tensor_bytes(shape: Iterable[int], qtype: GGMLQuantizationType) -> int:
    """Return the bytes of a tensor; `shape` in GGUF order. Raises ValueError for rows of broken blocks."""
    dimensions = tuple(shape)
    block_size, type_size = GGML_QUANT_SIZES[qtype]
    if dimensions and dimensions[0] % block_size:
        raise ValueError(f"rows of {dimensions[0]} weights cannot be cut into blocks of {block_size}")
    return prod(dimensions) // block_size * type_size


def read_gguf(path: Path, oldest: int = OLDEST_LOADED) -> GgufFile:
    """Read the header of a GGUF file, and of all its shards when it is the first of a split one.

    `oldest` is the oldest version to take: llama.cpp loads 2 and 3, and 1 can be read. Raises GgufError for a file that
    is not GGUF, truncated, inconsistent, or lacks a shard.
    """
    first = read_shard(Path(path), oldest)
    count = _split_number(first, Keys.Split.LLM_KV_SPLIT_COUNT, 0)
    if count <= 1:
        return first
    name = SPLIT_NAME.match(first.path.name)
    if not name or int(name["count"]) != count:
        raise GgufError(f"{path}: one of {count} shards, but not named NAME-00001-of-{count:05}.gguf; rename it")
    if _split_number(first, Keys.Split.LLM_KV_SPLIT_NO, 0) != 0:
        raise GgufError(f"{path}: not the first of {count} shards; name {name['stem']}-00001-of-{count:05}.gguf")
    paths = [first.path.with_name(f"{name['stem']}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    tensors = dict(first.tensors)
    for number, shard_path in enumerate(paths[1:], 1):
        if not shard_path.is_file():
            raise GgufError(f"{shard_path}: missing shard of {count}; put all shards into one folder")
        shard = read_shard(shard_path)
        if _split_number(shard, Keys.Split.LLM_KV_SPLIT_NO, number) != number:
            raise GgufError(f"{shard_path}: was written as another shard; give each its own name again")
        for tensor in shard.tensors.values():
            if tensor.name in tensors:
                raise GgufError(f"{shard_path}: tensor {tensor.name} is in two shards")
            tensors[tensor.name] = tensor
    expected = _split_number(first, Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, len(tensors))
    if expected != len(tensors):
        raise GgufError(f"{path}: {expected} tensors promised, {len(tensors)} found in {count} shards")
    return GgufFile(first.path, tuple(paths), first.fields, tensors, first.alignment, first.header_bytes)


def _split_number(file: GgufFile, key: str, default: int) -> int:
    value = file.metadata.get(key, default)
    if not isinstance(value, int):
        raise GgufError(f"{file.path}: {key} is {value!r:.40}, not a number; download or convert it again")
    return value


def read_shard(path: Path, oldest: int = OLDEST_LOADED) -> GgufFile:
    """Read the header of one file, without looking for other shards; see `read_gguf`."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            if file.read(4) != MAGIC:
                raise GgufError(f"{path}: {what_it_is(path)}")
            if size < 24:
                raise GgufError(f"{path}: not a GGUF file ({size} bytes)")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(Cursor(data, size, str(path)), size, path, oldest)
    except IsADirectoryError:
        raise GgufError(f"{path}: a folder, not a GGUF file") from None
    except FileNotFoundError:
        raise GgufError(f"{path}: no such file") from None


def _parse(cursor: Cursor, size: int, path: Path, oldest: int) -> GgufFile:
    cursor.take(len(MAGIC))
    version = cursor.number("<I")
    if version == 1 and oldest == 1:
        cursor.length = LENGTH_OF_1
    elif version not in (2, GGUF_VERSION):
        if version and not version & 0xFFFF:
            raise GgufError(f"{path}: a big-endian file; llama.cpp's gguf_convert_endian.py makes it little-endian")
        if version == 1:
            raise GgufError(
                f"{path}: GGUF version 1 (the first, of August 2023), which llama.cpp no longer loads; make it version "
                f"{GGUF_VERSION} by moe-gguf upgrade"
            )
        raise GgufError(f"{path}: GGUF version {version}; only 2 and {GGUF_VERSION} can be read; convert it again")
    n_tensors, n_fields = cursor.number(cursor.length.format), cursor.number(cursor.length.format)
    if n_tensors * 24 > cursor.size or n_fields * 12 > cursor.size:
        raise cursor.fail(f"{n_tensors} tensors and {n_fields} fields do not fit into the file")
    fields: dict[str, Field] = {}
    for _ in range(n_fields):
        key = cursor.string()
        if key in fields:
            raise cursor.fail(f"{key!r:.80} twice")
        fields[key] = cursor.field()
    entries = [_tensor_entry(cursor) for _ in range(n_tensors)]
    alignment_field = fields.get(Keys.General.ALIGNMENT)
    alignment = alignment_field.value if alignment_field else GGUF_DEFAULT_ALIGNMENT
    if type(alignment) is not int or not 1 <= alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.fail(f"alignment {alignment!r:.40} is not a power of two up to {LARGEST_ALIGNMENT}")
    start = cursor.at + (-cursor.at) % alignment
    tensors = _place(entries, start, alignment, size, path)
    end = max((tensor.offset + tensor.n_bytes for tensor in tensors.values()), default=start)
    behind = bytes(cursor.data[end : end + alignment + 4]).find(MAGIC)
    # llama.cpp reads a whole file and looks at nothing behind it.
    if behind >= 0 and Keys.Split.LLM_KV_SPLIT_COUNT in fields:
        raise GgufError(
            f"{path}: another GGUF file begins at byte {end + behind}: shards joined by cat, which nothing can load; "
            "keep them apart under their own names, or join those with llama.cpp's llama-gguf-split --merge"
        )
    return GgufFile(path, (path,), fields, tensors, alignment, start, version)


def _tensor_entry(cursor: Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    name, n_dims = cursor.string(), cursor.number("<I")
    if len(name) > LONGEST_NAME:
        raise cursor.fail(f"a tensor's name of {len(name)} characters")
    if not 1 <= n_dims <= 4:
        raise cursor.fail(f"tensor {name!r} has {n_dims} dimensions")
    shape = tuple(cursor.number(cursor.length.format) for _ in range(n_dims))
    if any(not 0 < n <= LARGEST_DIMENSION for n in shape) or prod(shape) >= 2**62:
        raise cursor.fail(f"tensor {name!r} has the impossible shape {list(shape)}")
    try:
        qtype = tensor_type(cursor.number("<I"))
    except UnknownTypeError as error:
        raise GgufError(f"{cursor.path}: tensor {name!r} is of {error}") from None
    return name, shape, qtype, cursor.number("<Q")


def _place(
    entries: list[tuple[str, tuple[int, ...], GGMLQuantizationType, int]],
    start: int,
    alignment: int,
    size: int,
    path: Path,
) -> dict[str, GgufTensor]:
    tensors: dict[str, GgufTensor] = {}
    for name, shape, qtype, offset in entries:
        if name in tensors:
            raise GgufError(f"{path}: tensor {name!r} is there twice")
        try:
            n_bytes = tensor_bytes(shape, qtype)
        except ValueError as error:
            raise GgufError(f"{path}: tensor {name!r} of type {qtype.name}: {error}") from None
        if offset % alignment:
            raise GgufError(f"{path}: tensor {name!r} starts at {offset}, not a multiple of {alignment}")
        if start + offset + n_bytes > size:
            raise GgufError(
                f"{path}: truncated: tensor {name!r} ends at byte {start + offset + n_bytes}, "
                f"the file at {size}; {part_of(path) or 'download or convert it again'}"
            )
        tensors[name] = GgufTensor(name, shape, qtype, start + offset, n_bytes, path)
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for one, other in pairwise(ordered):
        if one.offset + one.n_bytes > other.offset:
            raise GgufError(f"{path}: tensors {one.name!r} and {other.name!r} overlap")
    return tensors


def same_file(one: Path, other: Path) -> bool:
    """Tell whether two paths name the same existing file."""
    return one.exists() and other.exists() and os.path.samefile(one, other)
